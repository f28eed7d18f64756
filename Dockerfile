# Two images of one recipe (docs/decisions/0022, docs/runner.md): a Space, which is the last stage and so
# what a plain `docker build .` makes, and a runner, on the CPU or with an NVIDIA GPU:
#   docker build --target runner --build-arg LOCK=requirements/run.lock -t dynquant .
#   docker build --target runner --build-arg LOCK=requirements/cuda.lock -t dynquant:cuda .
ARG LOCK=requirements.txt

# MLX's wheel for CUDA needs glibc 2.35 or newer; this system has 2.36.
FROM python:3.12-bookworm AS runner
ARG LOCK

# MLX multiplies with OpenBLAS where there is one.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libopenblas0-pthread \
    && rm -rf /var/lib/apt/lists/*

# Only files that the lock knows by hash are installed, and no package runs code to be built.
COPY ${LOCK} /tmp/requirements.txt
RUN pip install --no-cache-dir --no-deps --only-binary :all: --require-hashes -r /tmp/requirements.txt

# A Space runs its container as this user.
RUN useradd --create-home --uid 1000 user
USER user
WORKDIR /home/user/app
COPY --chown=user . .

ENV HOME=/home/user PYTHONUNBUFFERED=1
CMD ["python", "-m", "dynquant", "runner"]

# A Space: the pages, and a runner beside them where no inbox is set.
FROM runner AS space
# Gradio signs visitors in for real only on what it knows to be a Space.
ENV SYSTEM=spaces
EXPOSE 7860
CMD ["python", "app.py"]
