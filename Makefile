PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: protos
protos: ## write scaler/_generated from protos/
	$(BIN)/python -m grpc_tools.protoc -Iscaler/_generated=protos --python_out=. --pyi_out=. --grpc_python_out=. \
	  scaler/_generated/externalscaler.proto scaler/_generated/pilotlight.proto
