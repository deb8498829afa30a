"""``predict`` on nuclei with ``scellst`` and its default encoder, of cells."""

from __future__ import annotations

import time

GENES = 100


class Predict:
    """A model of one small synthetic slide, applied to the nuclei of another whose features nobody kept."""

    timeout = 600

    def setup(self) -> None:
        import stpred as st

        made = {"size_um": (500, 500), "n_genes": GENES}
        slides = [st.datasets.toy(donor=donor, **made) for donor in (0, 1)]
        for slide in slides:
            st.pp.nuclei(slide)
        self.slide = slides[1]
        with st.settings.override(cache_dir=None, progress=False):
            self.model = st.tl.train({"a": slides[0]}, "scellst", genes="all", groups={"a": "a"}, shapes_key="spots")

    def track_nuclei(self) -> int:
        """Nuclei of the slide."""
        return len(self.slide.shapes["nuclei"])

    def track_ms_per_nucleus(self) -> float:
        """Wall time of the whole call."""
        import stpred as st

        with st.settings.override(cache_dir=None, progress=False):
            start = time.perf_counter()
            st.tl.predict(self.slide, self.model, shapes_key="nuclei", key_added="found")
        return 1000 * (time.perf_counter() - start) / self.track_nuclei()

    track_ms_per_nucleus.unit = "ms"  # type: ignore[attr-defined]
