"""The hooks and the spec; torch stays out, so that `medbench list` stays quick."""

from medbench.api import AlgorithmSpec, Citation, Parameter, Traits, hookimpl


@hookimpl
def medbench_algorithms():
    """The one algorithm of this distribution."""
    return [
        AlgorithmSpec(
            name="acme/shrunken-means",
            version="1",  # raise it when scores change
            factory="acme_shrunken_means.algorithm:ShrunkenMeans",
            summary="Nearest class mean, with means shrunk towards the mean of all",
            traits=Traits(
                works_on="features", adapts="class centres", batched=True, meta_trains=True
            ),
            # Before any test the network learns to classify the source images, by a trainer that
            # comes with medbench. Methods that name the same one share its trainings.
            trainer="medbench_algorithms.common.pretrain:Supervised",
            citation=Citation(
                title="Shrunken means",
                authors="The medbench authors",
                venue="medbench's tutorial",
                year=2026,
            ),
            licence="Apache-2.0",
            parameters=(
                Parameter(
                    "shrinkage",
                    1.0,
                    "how many support images the mean of all counts for in each class's mean",
                    "float",
                    minimum=0.0,
                    stage="adapt",
                ),
                # The trainer's own: of stage "train".
                Parameter(
                    "pretrain",
                    "supervised",
                    "supervised, or none: the network stays as it is",
                    "str",
                    choices=("supervised", "none"),
                    stage="train",
                ),
                Parameter("lr", 1e-3, "Adam's learning rate", "float", above=0.0, stage="train"),
                Parameter("batch_size", 64, "images a step", "int", minimum=2, stage="train"),
            ),
        )
    ]
