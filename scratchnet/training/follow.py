"""Who is told how a run goes: a page that is looked at, files for another program."""


class Follower:
    """Is told by the trainer what it measures, when it measures it; on every rank, at the same places of the run."""

    def step(self, row: dict) -> None:
        """A look at the training, every step on a CPU, every 50 on a GPU.

        Args:
            row: "step", how many are done; "epoch", with the share of the one under way; "loss" and "accuracy" of the
                pictures since the last look; "lr"; "images_per_second" in this epoch.
        """

    def predicted(self, logits, labels) -> None:
        """A batch of validation pictures, this rank's share: logits (N, classes) and labels (N,), where the model is."""

    def epoch(self, step: int, row: dict, result) -> None:
        """The end of an epoch: how many steps are done, its row of metrics.csv, and the `Evaluation` of the validation."""

    def tested(self, step: int, result) -> None:
        """After the last epoch: the `Evaluation` of the test pictures, by the best checkpoint."""

    def close(self) -> None:
        """Nothing more will come."""
