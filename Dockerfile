# styleid on the CPU: docker build -t styleid . && docker run --rm -v "$PWD:/data" styleid transfer photo.jpg painting.jpg -o out.png
FROM python:3.13-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY . /source
RUN python -m venv /opt/styleid && /opt/styleid/bin/pip install --no-cache-dir /source

FROM python:3.13-slim
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 libstdc++6 && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/styleid /opt/styleid
WORKDIR /data
ENTRYPOINT ["/opt/styleid/bin/styleid"]
CMD ["--help"]
