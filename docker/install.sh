#!/bin/sh
# In a build stage: the package with its extras ($1) in /opt/glm-trt, without what installed it.
set -eu
extras=$1
python3 -m venv /opt/glm-trt
/opt/glm-trt/bin/pip install --no-cache-dir --disable-pip-version-check \
    --constraint constraints.txt ".[$extras]"
/opt/glm-trt/bin/glm-trt --version
/opt/glm-trt/bin/pip uninstall --yes --quiet pip setuptools
