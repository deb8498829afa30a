from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stpred._core import keys
from stpred._core.checks import InputError
from stpred.tl._latent.space import Space

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray
    from spatialdata import SpatialData


def cluster_purity(
    slides: Mapping[str, SpatialData] | SpatialData,
    table_key: str,
    labels: str,
    *,
    groupby: str = "latent_cluster",
    coordinate_system: str = keys.UM,
) -> pd.DataFrame:
    """Tell how far clusters agree with labels, such as those of a pathologist.

    Parameters
    ----------
    slides
        Slides by name, or one slide.
    table_key
        Table of every slide that holds the clusters.
    labels
        Column of its ``obs``, of the shapes, or of another table that annotates them. Locations without a label are
        left out.
    groupby
        Column of the clusters.
    coordinate_system
        The slides' micrometre frame; of a table that annotates regions of several slides, the rows of the one there.

    Returns
    -------
    DataFrame with a row per cluster: ``cluster``, ``n`` (labelled locations), ``n_slides``, ``label`` (the most
    frequent one), ``purity`` (its share of the cluster) and ``chance`` (its share of all locations, which a cluster
    made by chance would have). ``attrs["stpred"]`` holds ``purity`` of all (share of locations that have their
    cluster's most frequent label), ``chance`` (share of the most frequent label), ``adjusted_rand`` and
    ``normalized_mutual_info``, the latter two 0 for clusters that have nothing to do with the labels (the last one
    nearly) and 1 for the same classes.

    Raises
    ------
    InputError
        If a table or column is missing, or no location has both a cluster and a label.

    References
    ----------
    He et al. (2020), Integrating spatial gene expression and breast tumour morphology via deep learning, Nature
    Biomedical Engineering 4:827: purity of clusters for tumour and normal tissue.

    Examples
    --------
    >>> import stpred as st
    >>> slide = st.datasets.toy(size_um=(500, 500), n_genes=20)
    >>> st.pp.features(slide, shapes_key="spots")
    >>> st.tl.latent_clusters(slide, "spots_feat_morphology", n_clusters=3)
    >>> slide.shapes["spots"]["side"] = ["left" if x < 250 else "right" for x in slide.shapes["spots"].geometry.x]
    >>> found = st.tl.cluster_purity(slide, "spots_feat_morphology", "side")
    >>> bool((found["purity"] >= 0.5).all())
    True
    """
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    space = Space.of(slides, table_key, coordinate_system=coordinate_system)
    clusters = space.column(groupby, parameter="groupby")
    known = space.column(labels, parameter="labels")
    used = (clusters != "") & (known != "")
    if not used.any():
        raise InputError(
            f"No location of table {table_key!r} has both a cluster ({groupby!r}) and a label ({labels!r})."
        )
    clusters, known, slide = clusters[used], known[used], space.places["slide"].to_numpy()[used]
    frame, total, chance = purity(clusters, known)
    frame["n_slides"] = [len(set(slide[clusters == c])) for c in frame["cluster"]]
    found: pd.DataFrame = frame[["cluster", "n", "n_slides", "label", "purity", "chance"]]
    found.attrs[keys.UNS] = {
        "kind": "cluster_purity", "table": table_key, "by": groupby, "labels": labels, "n": len(known),
        "n_unlabelled": int((~used).sum()), "purity": total, "chance": chance,
        "adjusted_rand": float(adjusted_rand_score(known, clusters)),
        "normalized_mutual_info": float(normalized_mutual_info_score(known, clusters)),
    }  # fmt: skip
    return found


def purity(clusters: NDArray[Any], labels: NDArray[Any]) -> tuple[pd.DataFrame, float, float]:
    """Return the most frequent label of each cluster and its share, the share of all such locations, and by chance.

    Of labels that are equally frequent the first one by name is taken.
    """
    import pandas as pd

    counts = pd.crosstab(pd.Series(clusters), pd.Series(labels))
    names = sorted(counts.index, key=lambda c: (0, int(c), c) if str(c).isdigit() else (1, 0, c))
    counts = counts.loc[names]
    best = counts.idxmax(axis=1)
    top, n = counts.max(axis=1), counts.sum(axis=1)
    share = counts.sum(axis=0) / len(labels)
    frame = pd.DataFrame(
        {"cluster": names, "n": n.to_numpy(), "label": best.to_numpy(), "purity": (top / n).to_numpy()}
    ).assign(chance=share[best].to_numpy())
    return frame, float(top.sum() / len(labels)), float(share.max())
