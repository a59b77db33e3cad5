"""The library needs nothing that only Unix has: no fcntl, no resource, no os.fork."""

import os
import subprocess
import sys

import pandalib

UNIX_ONLY = ("fcntl", "resource", "pwd", "grp", "termios")
PROGRAM = f"""
import os, sys
import psutil  # has a part for each system, and on Unix that part needs these modules
sys.modules.update(dict.fromkeys({UNIX_ONLY}))  # None: importing them fails
for name in ("fork", "forkpty", "geteuid", "getuid", "statvfs"):
    delattr(os, name)

import importlib, pkgutil, tempfile
import numpy as np
from PIL import Image
import pandalib

for module in pkgutil.walk_packages(pandalib.__path__, "pandalib."):
    importlib.import_module(module.name)

from pandalib import DN2, PANDAEWC, FeatureCache, Inspector, load_backbone, load_task, run

task = load_task("pictograms:star", n_train=20, n_test=4)
with tempfile.TemporaryDirectory() as folder:
    network, cache = load_backbone(device="cpu"), FeatureCache(folder + "/cache")
    print(DN2(network, cache=cache).fit(task.train).score(task.test).shape)
    print(run("pictograms:star", "early", n_train=20, n_test=4, epochs=1)["roc_auc"] > 0)
    os.mkdir(folder + "/normal")
    for number, image in enumerate(task.train):
        Image.fromarray(image.transpose(1, 2, 0)).save(folder + f"/normal/{{number}}.png")
    inspector = Inspector(network, size=64, false_alarm_rate=0.1, progress=False)
    inspector.fit(folder + "/normal").save(folder + "/detector")
    found = Inspector.load(folder + "/detector", backbone=network).score(task.test)
    print(np.array_equal(found, inspector.score(task.test)))
"""


def test_every_module_imports_fits_and_scores_without_what_is_unix_only(tmp_path):
    environment = os.environ | {"PANDALIB_CACHE": str(tmp_path), "PANDALIB_QUIET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[-4:] == ["(40,)", "True", "True", ""]


def test_importing_the_library_is_instant_and_every_public_name_is_there():
    program = "import sys, pandalib; print('torch' in sys.modules or 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
    assert all(getattr(pandalib, name) is not None for name in pandalib.__all__)
    assert set(pandalib.__all__) <= set(dir(pandalib))
