"""Evaluate a run directory's best checkpoint: python experiments/evaluate.py RUN_DIR --split test"""

from polyjax.cli.evaluate import main

if __name__ == "__main__":
    main(prog="python experiments/evaluate.py")
