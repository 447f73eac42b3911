"""efficientad.predict with tiny networks, as a process of its own."""

import stubs
from efficientad import predict
from efficientad.inference import run
from efficientad.system.errors import run_command

if __name__ == "__main__":
    stubs.use_tiny_networks()
    run.LOG_SECONDS = 0.5
    run_command(predict.main, predict.get_parser())
