"""Train a ranker and evaluate it: python experiments/run.py --arch poly"""

from polyjax.cli.train import main

if __name__ == "__main__":
    main(prog="python experiments/run.py")
