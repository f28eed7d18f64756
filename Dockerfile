# A Space: the pages, and a runner beside them where no inbox is set (docs/decisions/0022).
FROM python:3.12-bookworm

# MLX multiplies with OpenBLAS where there is one.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libopenblas0-pthread \
    && rm -rf /var/lib/apt/lists/*

# Only files that the lock knows by hash are installed, and no package runs code to be built.
COPY requirements.txt /tmp/
RUN pip install --no-cache-dir --no-deps --only-binary :all: --require-hashes -r /tmp/requirements.txt

# A Space runs its container as this user.
RUN useradd --create-home --uid 1000 user
USER user
WORKDIR /home/user/app
COPY --chown=user . .

# Gradio signs visitors in for real only on what it knows to be a Space.
ENV HOME=/home/user PYTHONUNBUFFERED=1 SYSTEM=spaces
EXPOSE 7860
CMD ["python", "app.py"]
