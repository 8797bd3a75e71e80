# One image with both programs: /manager, the operator, and /dedupd, the daemon.
FROM --platform=$BUILDPLATFORM golang:1.26.11 AS build
ARG TARGETOS
ARG TARGETARCH
ARG VERSION=dev
WORKDIR /src
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod go mod download
COPY api/ api/
COPY controllers/ controllers/
COPY dedupd/ dedupd/
COPY webhook/ webhook/
COPY main.go ./
ENV CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    go build -tags grpcnotrace -trimpath -ldflags="-s -w -X main.version=$VERSION" -o /out/manager . && \
    go build -tags grpcnotrace -trimpath -ldflags="-s -w -X main.version=$VERSION" -o /out/dedupd ./dedupd

FROM gcr.io/distroless/static:nonroot
COPY --from=build /out/manager /out/dedupd /
USER 65532:65532
ENTRYPOINT ["/manager"]
