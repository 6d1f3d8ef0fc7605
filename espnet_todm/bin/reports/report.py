"""Stage 15: plots and RESULTS.md from scored experiments, and report.html, one self-contained page, in the folder of each.

Example: python -m espnet_todm.bin.report --experiment exp/train_todm --label "LibriSpeech, 100 h" \\
             --command "./run.sh --stage 1" --output RESULTS.md
"""

from __future__ import annotations

from espnet_todm.bin._cli import Parser, run
from espnet_todm.report.results import write_results
from espnet_todm.scoring.scores import OFFICIAL_SIZES

parser = Parser(__doc__)
parser.add_argument(
    "--experiment", dest="experiments", required=True, nargs="+", help="scored folder(s), e.g. exp/train_todm"
)
parser.add_argument("--label", required=True, help='what the data are, e.g. "LibriSpeech, 100 h"')
parser.add_argument(
    "--command", dest="commands", action="append", default=[], help="command to quote, as typed; may be repeated"
)
parser.add_argument("--output", default="RESULTS.md", help="the report (default: %(default)s)")
parser.add_argument("--config", help="training config of the first experiment to link (default: its config.yaml)")
parser.add_argument("--corpus", choices=sorted(OFFICIAL_SIZES), help="note when its official sets are not complete")
parser.add_argument("--plots", help="folder for the pictures (default: report/ in the experiment)")
main = parser.calling(lambda **options: print(write_results(**options)))

if __name__ == "__main__":
    run(main)
