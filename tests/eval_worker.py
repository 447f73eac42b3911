"""eval.py with tiny networks, in a process of its own."""

import eval as eval_script
import stubs
from efficientad.system.errors import run_command

if __name__ == "__main__":
    stubs.use_tiny_networks()
    run_command(eval_script.main, eval_script.get_parser())
