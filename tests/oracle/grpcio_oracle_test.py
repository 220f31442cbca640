"""The public API as a Python client sees it that has nothing but proto/, and gRPC's own services."""

import importlib
import os
import re
import subprocess
import sys

import grpc
import pytest
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from conftest import ROOT, start_server, wait_until

SERVICE = "everlong.v1.Inference"
FREED_WITHIN_S = 20


@pytest.fixture
def channel(server):
    with grpc.insecure_channel(server.grpc) as channel:
        yield channel


def needle_prompt(*options):
    return subprocess.run([ROOT / "scripts" / "needle-prompt", *options], check=True,
                          capture_output=True, text=True).stdout


def endless_request(pb):
    """Generates far longer than any test waits."""
    request = pb.GenerateRequest(text="The licence says", sampling=pb.Sampling(temperature=0))
    request.stopping.ignore_eos = True
    return request


def kinds(events):
    return [event.WhichOneof("event") for event in events]


def outputs(events):
    return [event.output for event in events if event.WhichOneof("event") == "output"]


def test_events_arrive_in_the_documented_order(inference, pb):
    request = pb.GenerateRequest(text="This document describes", sampling=pb.Sampling(temperature=0))
    request.stopping.max_output_tokens = 20
    request.stopping.ignore_eos = True
    events = list(inference.Generate(request))

    order = kinds(events)
    assert order[:2] == ["accepted", "prefill"]
    assert order[-2:] == ["sample_finished", "finished"]
    assert set(order[2:-2]) <= {"prefill", "output"}
    assert events[-2].sample_finished.reason == pb.FINISH_REASON_LENGTH
    usage = events[-1].finished.usage
    assert usage.prompt_tokens == events[0].accepted.prompt_tokens > 0
    assert usage.output_tokens == sum(len(output.token_ids) for output in outputs(events)) == 20
    ids = [token for output in outputs(events) for token in output.token_ids]
    text = "".join(output.text for output in outputs(events))
    assert text == inference.Detokenize(pb.DetokenizeRequest(token_ids=ids)).text


def test_tokens_stream_while_later_ones_are_still_to_come(inference, pb, server):
    call = inference.Generate(endless_request(pb))
    try:
        first = next(event for event in call if event.WhichOneof("event") == "output")
        assert first.output.token_ids
        assert server.metric("everlong_num_requests_running") == 1
    finally:
        call.cancel()
    wait_until(server.is_idle, FREED_WITHIN_S, "the request is gone")


@pytest.mark.parametrize("seed", ["1", "2"])
def test_a_fact_planted_in_a_long_prompt_is_found(inference, pb, seed):
    request = pb.GenerateRequest(text=needle_prompt("--tokens", "3000", "--seed", seed),
                                 sampling=pb.Sampling(temperature=0))
    request.stopping.max_output_tokens = 8
    request.stopping.stop.append(".")
    events = list(inference.Generate(request))
    answer = "".join(output.text for output in outputs(events))
    assert answer == needle_prompt("--seed", seed, "--answer").strip()
    finished = events[-2].sample_finished
    assert (finished.reason, finished.stop_string) == (pb.FINISH_REASON_STOP_STRING, ".")


def test_token_ids_and_text_are_the_same_prompt(inference, pb):
    text = "Permission is granted to copy"
    ids = inference.Tokenize(pb.TokenizeRequest(text=text)).token_ids
    requests = [pb.GenerateRequest(text=text), pb.GenerateRequest(token_ids=pb.TokenIds(ids=ids))]
    tokens = []
    for request in requests:
        request.sampling.temperature = 0.8
        request.sampling.seed = 7
        request.stopping.max_output_tokens = 12
        tokens.append([token for output in outputs(inference.Generate(request))
                       for token in output.token_ids])
    assert tokens[0] == tokens[1] != []


def test_cancel_frees_everything(inference, pb, server):
    call = inference.Generate(endless_request(pb))
    for event in call:
        if event.WhichOneof("event") == "output":
            break
    assert server.metric('everlong_kv_cache_usage_ratio{tier="device"}') > 0
    assert call.cancel()
    with pytest.raises(grpc.RpcError) as error:
        list(call)
    assert error.value.code() == grpc.StatusCode.CANCELLED
    wait_until(server.is_idle, FREED_WITHIN_S, "the cancelled request is gone")


def test_a_deadline_ends_the_call_and_frees_everything(inference, pb, server):
    with pytest.raises(grpc.RpcError) as error:
        list(inference.Generate(endless_request(pb), timeout=1))
    assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    wait_until(server.is_idle, FREED_WITHIN_S, "the late request is gone")


def test_a_client_that_vanishes_frees_everything(pb, protos, server):
    channel = grpc.insecure_channel(server.grpc)
    stub = importlib.import_module("everlong.v1.inference_pb2_grpc").InferenceStub(channel)
    call = stub.Generate(endless_request(pb))  # kept: gRPC cancels a call that nobody holds
    next(call)
    wait_until(lambda: server.metric("everlong_num_requests_running") == 1, FREED_WITHIN_S, "it runs")
    channel.close()
    wait_until(server.is_idle, FREED_WITHIN_S, "the abandoned request is gone")


def test_the_example_of_the_readme_runs(protos, server):
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    example = example.replace("127.0.0.1:50051", server.grpc)
    run = subprocess.run([sys.executable, "-c", example], check=True, capture_output=True, text=True,
                         env={**os.environ, "PYTHONPATH": str(protos)})
    assert len(run.stdout) > 20 and not run.stderr


def test_get_model_agrees_with_list_models(inference, pb):
    (model,) = inference.ListModels(pb.ListModelsRequest()).models
    assert model == inference.GetModel(pb.GetModelRequest(model=model.name))
    assert (model.name, model.architecture, model.trained_length) == (
        "needle-7m", "LlamaForCausalLM", 4096)


def test_reflection_describes_the_service(channel, pb):
    database = ProtoReflectionDescriptorDatabase(channel)
    assert {SERVICE, "grpc.health.v1.Health"} <= set(database.get_services())
    reflected = descriptor_pool.DescriptorPool(database).FindServiceByName(SERVICE)
    ours = pb.DESCRIPTOR.services_by_name["Inference"]
    assert [method.name for method in reflected.methods] == [method.name for method in ours.methods]
    assert ([field.name for field in reflected.methods_by_name["Generate"].input_type.fields] ==
            [field.name for field in pb.GenerateRequest.DESCRIPTOR.fields])


@pytest.mark.parametrize("service", ["", SERVICE])
def test_health_is_serving(channel, service):
    response = health_pb2_grpc.HealthStub(channel).Check(
        health_pb2.HealthCheckRequest(service=service))
    assert response.status == health_pb2.HealthCheckResponse.SERVING


def test_health_of_an_unknown_service_is_not_found(channel):
    with pytest.raises(grpc.RpcError) as error:
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="no.such"))
    assert error.value.code() == grpc.StatusCode.NOT_FOUND


def fill(request, field, value):
    *path, name = field.split(".")
    for part in path:
        request = getattr(request, part)
    if isinstance(value, list):
        getattr(request, name).extend(value)
    else:
        setattr(request, name, value)


@pytest.mark.parametrize("field, value, in_message", [
    ("sampling.temperature", -1.0, "-1"),
    ("sampling.temperature", float("nan"), "nan"),
    ("sampling.top_p", 1.5, "1.5"),
    ("sampling.min_p", 1.0, "1"),
    ("sampling.repetition_penalty", 0.0, "0"),
    ("sampling.presence_penalty", 3.0, "3"),
    ("token_ids.ids", [5, 1 << 20], str(1 << 20)),
    ("stopping.max_output_tokens", 0, "0"),
    ("stopping.stop", ["x"] * 17, "17"),
    ("logprobs.top", 21, "21"),
    ("num_samples", 17, "17"),
    ("priority", 101, "101"),
])
def test_bad_input_gets_a_status_that_names_field_and_value(inference, pb, protos, field, value, in_message):
    request = pb.GenerateRequest(text="Hello")
    fill(request, field, value)
    with pytest.raises(grpc.RpcError) as error:
        list(inference.Generate(request))
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert field.split(".")[-1] in error.value.details()
    assert in_message in error.value.details()

    status = importlib.import_module("google.rpc.status_pb2").Status()
    status.ParseFromString(dict(error.value.trailing_metadata())["grpc-status-details-bin"])
    bad_request = importlib.import_module("google.rpc.error_details_pb2").BadRequest()
    assert status.details[0].Unpack(bad_request)
    assert field.split(".")[-1] in bad_request.field_violations[0].field


def test_a_prompt_over_the_served_length_is_refused_with_both_numbers(inference, pb):
    served = inference.GetModel(pb.GetModelRequest()).served_length
    request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[5] * (served + 1)))
    with pytest.raises(grpc.RpcError) as error:
        list(inference.Generate(request))
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert str(served) in error.value.details() and str(served + 1) in error.value.details()


def test_an_unknown_model_is_not_found(inference, pb):
    with pytest.raises(grpc.RpcError) as error:
        inference.GetModel(pb.GetModelRequest(model="no-such-model"))
    assert error.value.code() == grpc.StatusCode.NOT_FOUND
    assert "no-such-model" in error.value.details()


def test_sigterm_lets_running_requests_finish_and_turns_new_ones_away(pb, protos, tmp_path):
    draining = start_server(tmp_path, "--drain-seconds", "300")
    with grpc.insecure_channel(draining.grpc) as channel:
        stub = importlib.import_module("everlong.v1.inference_pb2_grpc").InferenceStub(channel)
        request = endless_request(pb)
        request.stopping.max_output_tokens = 2500  # Seconds.
        call = stub.Generate(request)
        next(event for event in call if event.WhichOneof("event") == "output")
        draining.process.terminate()

        health = health_pb2_grpc.HealthStub(channel)
        serving = health_pb2.HealthCheckResponse.SERVING
        check = health_pb2.HealthCheckRequest(service=SERVICE)
        wait_until(lambda: health.Check(check).status != serving, 10, "health tells of the drain")
        with pytest.raises(grpc.RpcError) as error:
            list(stub.Generate(endless_request(pb)))
        assert error.value.code() == grpc.StatusCode.UNAVAILABLE
        assert kinds(call)[-1] == "finished"
    assert draining.process.wait(timeout=60) == 0
