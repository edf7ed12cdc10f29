# docker build -f docker/cuda.Dockerfile -t mmvanilla:cuda .
# CUDA 12.8, as the torch of requirements/constraints.txt; `devel` has nvcc,
# which compiles mmcv's ops.
FROM nvidia/cuda:12.8.1-devel-ubuntu24.04
ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1
# python3-dev and g++ are for mmcv's ops and torch.compile; libGL and GLib are
# what OpenCV links to.
RUN apt-get update && apt-get install -y --no-install-recommends g++ python3-dev python3-venv libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/venv
WORKDIR /mmvanilla
# A layer of its own, which a change of the code does not build anew.
COPY requirements requirements
RUN pip install -c requirements/constraints.txt torch torchvision
COPY . .
RUN pip install -c requirements/constraints.txt -e '.[onedl-downstream,export]'
# A build sees no GPU, so the ones to compile for are named: Turing to Hopper,
# and newer ones through PTX. Change them with --build-arg.
ARG TORCH_CUDA_ARCH_LIST="7.5;8.0;8.6;8.9;9.0+PTX"
RUN FORCE_CUDA=1 MMVANILLA_CACHE=/tmp/mmvanilla requirements/build_mmcv.sh \
    && rm -rf /tmp/mmvanilla
CMD ["bash"]
