# The command in a container: docker run --rm --init -v "$PWD:/work" obc-onnx inspect model.onnx
FROM python:3.12-slim

COPY pyproject.toml requirements.txt requirements-onnxruntime.txt constraints.txt README.md LICENSE /source/
COPY obc_onnx /source/obc_onnx
# such as an index of torch without CUDA, which saves gigabytes
ARG PIP_EXTRA_INDEX_URL
RUN pip install --no-cache-dir --constraint /source/constraints.txt /source \
    && rm -r /source

WORKDIR /work
ENTRYPOINT ["obc-onnx"]
CMD ["--help"]
