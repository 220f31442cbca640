# everlong-server and everlong, with the small model of the repository to begin with:
#
#   docker build --tag everlong .
#   docker run --publish 50051:50051 --publish 50052:50052 everlong
#
# Another checkpoint: --volume /path/to/checkpoint:/models/mine --env EVERLONG_MODEL=/models/mine
FROM debian:bookworm AS build
WORKDIR /src
COPY scripts/install-deps scripts/report.sh scripts/
RUN scripts/install-deps
COPY . .
RUN cmake --preset release -DEVERLONG_TESTS=OFF -DEVERLONG_BENCH=OFF \
    && cmake --build --preset release --target everlong_server everlong_client \
    && cmake --install build/release --prefix /opt/everlong --strip

FROM debian:bookworm
RUN groupadd --gid 10001 everlong && useradd --uid 10001 --gid everlong everlong
COPY --from=build /opt/everlong /opt/everlong
COPY models/needle-7m /models/needle-7m
USER 10001
ENV PATH=/opt/everlong/bin:$PATH \
    EVERLONG_MODEL=/models/needle-7m \
    EVERLONG_LISTEN=0.0.0.0:50051 \
    EVERLONG_METRICS_LISTEN=0.0.0.0:50052
EXPOSE 50051 50052
HEALTHCHECK CMD ["everlong", "models"]
ENTRYPOINT ["everlong-server"]
