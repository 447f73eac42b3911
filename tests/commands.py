"""The two commands, called as a user calls them."""

import eval as eval_script
import train as train_script


def train(*words):
    train_script.main(train_script.get_parser().parse_args([str(word) for word in words]))


def evaluate(*words):
    eval_script.main(eval_script.get_parser().parse_args([str(word) for word in words]))
