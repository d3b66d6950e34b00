# MLflow's server with Postgres and S3, and accounts. Built from the project's root:
#   docker build -f deploy/mlflow.Dockerfile -t overlay-mlflow .

FROM python:3.11.14-slim-bookworm AS libraries
ENV PATH=/opt/mlflow/bin:$PATH
RUN python -m venv /opt/mlflow \
 && pip install --no-cache-dir "mlflow[auth]==3.17.2" psycopg2-binary==2.9.13 boto3==1.44.5


FROM python:3.11.14-slim-bookworm
RUN groupadd --gid 10001 mlflow \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin mlflow
COPY --from=libraries /opt/mlflow /opt/mlflow
COPY --chmod=0444 deploy/healthcheck.py deploy/mlflow_start.py /opt/
ENV PATH=/opt/mlflow/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp
WORKDIR /tmp
USER 10001:10001
EXPOSE 5000
HEALTHCHECK --interval=10s --timeout=5s --start-period=180s --retries=6 \
    CMD ["python", "/opt/healthcheck.py", "http://127.0.0.1:5000/health"]
CMD ["python", "/opt/mlflow_start.py", "--host", "0.0.0.0", "--port", "5000"]
