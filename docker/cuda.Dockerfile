# docker build -f docker/cuda.Dockerfile -t mmvanilla:cuda .
FROM nvidia/cuda:12.8.1-devel-ubuntu24.04
ENV PATH=/opt/venv/bin:$PATH FORCE_CUDA=1
RUN apt-get update && apt-get install -y --no-install-recommends g++ git python3-dev python3-venv libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/* && python3 -m venv /opt/venv
WORKDIR /mmvanilla
COPY . .
RUN pip install --no-cache-dir -c requirements/constraints.txt -e '.[onedl-downstream,export]' \
    && requirements/build_mmcv.sh
CMD ["bash"]
