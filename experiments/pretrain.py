"""Pre-train an encoder: python experiments/pretrain.py --corpus pairs:FILES --encoder small"""

from polyjax.cli.pretrain import main

if __name__ == "__main__":
    main(prog="python experiments/pretrain.py")
