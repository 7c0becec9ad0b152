# The command in a container: docker run --rm --init -v "$PWD:/work" obc-onnx inspect model.onnx
FROM python:3.12-slim

COPY pyproject.toml requirements.txt requirements-onnxruntime.txt constraints.txt README.md LICENSE /source/
COPY obc_onnx /source/obc_onnx
RUN pip install --no-cache-dir --constraint /source/constraints.txt \
        --extra-index-url https://download.pytorch.org/whl/cpu /source \
    && rm -r /source

WORKDIR /work
ENTRYPOINT ["obc-onnx"]
CMD ["--help"]
