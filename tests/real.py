"""Where real data lies beside the project; a test that wants it skips where it does not."""

import os
from pathlib import Path

_DATA = Path(__file__).parents[2] / "shared" / "data"
GLUE = _DATA / "glue"
NLTK_DATA = Path(os.environ.get("LNFLAX_NLTK_DATA", _DATA / "nltk_data"))
