"""``python -m embae.trainer RECIPE …``: one rank of a run, what torchrun and srun start."""

from embae.trainer.commands.app import train_main

if __name__ == "__main__":
    train_main()
