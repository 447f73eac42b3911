"""efficientad.pretrain with tiny networks and nothing left to chance, for one process or several."""

import stubs
from efficientad import pretrain
from efficientad.pretraining import backbones, batches
from efficientad.system.errors import run_command

if __name__ == "__main__":
    stubs.use_tiny_networks()
    backbones.load_backbone = stubs.random_backbone
    batches.GRAY_SHARE = 0.0
    run_command(pretrain.main, pretrain.get_parser())
