# docker build -f docker/cpu.Dockerfile -t mmvanilla:cpu .
FROM python:3.11-slim
RUN apt-get update && apt-get install -y --no-install-recommends g++ libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /mmvanilla
COPY . .
RUN pip install --no-cache-dir torch==2.10.0 torchvision==0.25.0 --index-url https://download.pytorch.org/whl/cpu \
    && pip install --no-cache-dir -c requirements/constraints.txt -e '.[onedl,export]'
CMD ["bash"]
