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
            traits=Traits(works_on="features", adapts="class centres", batched=True),
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
            ),
        )
    ]
