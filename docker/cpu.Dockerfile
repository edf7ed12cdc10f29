# docker build -f docker/cpu.Dockerfile -t mmvanilla:cpu .
FROM python:3.11-slim-bookworm
ENV PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
# g++ is for torch.compile; libGL and GLib are what OpenCV links to.
RUN apt-get update && apt-get install -y --no-install-recommends g++ libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /mmvanilla
# The CPU build of torch, without CUDA's libraries (4 GB). A layer of its own,
# which a change of the code does not build anew.
COPY requirements requirements
RUN pip install --no-deps --index-url https://download.pytorch.org/whl/cpu \
    -c requirements/constraints.txt torch torchvision
COPY . .
RUN pip install -c requirements/constraints.txt -e '.[onedl,export]'
CMD ["bash"]
