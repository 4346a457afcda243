#!/usr/bin/env python3
"""The main job, as a product in Python does it: with code that grpcio-tools makes from proto/.

    hub dev --listen 127.0.0.1:0 --ready-file ready.json &
    pip install -r tests/python/requirements.txt
    tests/python/main_job.py --ready-file ready.json

Publishes a ticket.created with PSA's key and receives it with Portal's, and checks WhoAmI,
reflection and the details of errors. Starts nothing. Ends with 1 if anything differs from the
contract, and says what.
"""

import argparse
import json
import sys
import tempfile
import traceback
import uuid
from pathlib import Path

import grpc
import grpc_tools
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from grpc_tools import protoc

PROTO = Path(__file__).resolve().parents[2] / "proto"
# Every call is given so many seconds; a stream that stays silent fails.
TIMEOUT = 20
SERVICES = {
    "hub.api_keys.v1.ApiKeys",
    "hub.entity_sync.v1.EntitySync",
    "hub.event_bus.v1.EventBus",
    "hub.platform.v1.Platform",
    "hub.webhooks.v1.Webhooks",
    "grpc.health.v1.Health",
}


class Difference(Exception):
    """The hub did not do what the contract says."""


def check(what, found, expected):
    if found != expected:
        raise Difference(f"{what} is {found!r}, expected {expected!r}")


def require(what, condition, found):
    if not condition:
        raise Difference(f"{what}: found {found!r}")


def generate(folder):
    """Python modules from proto/, importable from the folder."""
    files = sorted(str(path) for path in PROTO.glob("hub/**/*.proto"))
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    arguments = ["protoc", f"-I{PROTO}", f"-I{well_known}"]
    arguments += [f"--python_out={folder}", f"--grpc_python_out={folder}", *files]
    check("the exit code of protoc", protoc.main(arguments), 0)
    sys.path.insert(0, str(folder))


class Errors:
    """Decodes google.rpc details with the descriptors that the hub's reflection serves."""

    def __init__(self, channel):
        self.pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(channel))

    def message(self, name):
        return message_factory.GetMessageClass(self.pool.FindMessageTypeByName(name))

    def details(self, error):
        """Details of an RpcError by name, e.g. ErrorInfo."""
        trailers = {key: value for key, value in error.trailing_metadata() or ()}
        require("trailers of an error", "grpc-status-details-bin" in trailers, sorted(trailers))
        status = self.message("google.rpc.Status").FromString(trailers["grpc-status-details-bin"])
        check("the code in the details", status.code, error.code().value[0])
        found = {}
        for detail in status.details:
            name = detail.type_url.rpartition("/")[2]
            require("one detail of each type", name not in found, name)
            found[name] = self.message(name).FromString(detail.value)
        return found

    def info(self, error, domain, reason):
        """Checks the ErrorInfo and returns its metadata."""
        found = self.details(error)
        require("details", "google.rpc.ErrorInfo" in found, sorted(found))
        info = found["google.rpc.ErrorInfo"]
        check("reason", (info.domain, info.reason), (domain, reason))
        require("callId in the metadata", info.metadata["callId"], dict(info.metadata))
        require("the reason in the message", f"[{reason}]" in error.details(), error.details())
        initial = {key: value for key, value in error.initial_metadata() or ()}
        trailing = {key: value for key, value in error.trailing_metadata() or ()}
        call = initial.get("x-request-id") or trailing.get("x-request-id")
        check("x-request-id", call, info.metadata["callId"])
        return dict(info.metadata)


def fails(call):
    """The error of a call that must fail."""
    try:
        answer = call()
    except grpc.RpcError as error:
        return error
    raise Difference(f"a bad call was answered: {answer!r}")


def bearer(key):
    return (("authorization", f"Bearer {key}"), ("x-hub-client", "python/main-job"))


class MainJob:
    """The checks, in the order in which they run."""

    def __init__(self, ready, channel):
        from hub.api_keys.v1 import api_keys_service_pb2, api_keys_service_pb2_grpc
        from hub.event_bus.v1 import cloud_event_pb2
        from hub.event_bus.v1 import event_bus_service_pb2, event_bus_service_pb2_grpc

        self.ready, self.channel = ready, channel
        self.keys, self.keys_stub = api_keys_service_pb2, api_keys_service_pb2_grpc
        self.bus, self.cloud_event = event_bus_service_pb2, cloud_event_pb2
        self.api_keys = self.keys_stub.ApiKeysStub(channel)
        self.events = event_bus_service_pb2_grpc.EventBusStub(channel)
        self.psa = bearer(ready["productKeys"]["psa"])
        self.portal = bearer(ready["productKeys"]["portal"])
        self.errors = None

    def ticket(self, **changes):
        # Fixed text beside the id, so that the same id is the same content.
        fields = {
            "id": f"python-{uuid.uuid4()}",
            "source": "/psa/tickets",
            "spec_version": "1.0",
            "type": "ticket.created",
            "text_data": '{"id":42,"title":"Printer on fire \u2013 \u00fc\u00f1\u00ee"}',
        }
        event = self.cloud_event.CloudEvent(**{**fields, **changes})
        event.attributes["subject"].ce_string = "ticket/42"
        event.attributes["priority"].ce_integer = 3
        return event

    def publish(self, event, metadata):
        request = self.bus.PublishRequest(events=[event])
        return self.events.Publish(request, metadata=metadata, timeout=TIMEOUT)

    def reflection_lists_the_services(self):
        for version in ("v1", "v1alpha"):
            call = self.channel.stream_stream(
                f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
                request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
                response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
            )
            listing = reflection_pb2.ServerReflectionRequest(list_services="")
            symbol = reflection_pb2.ServerReflectionRequest(
                file_containing_symbol="google.rpc.ErrorInfo"
            )
            answers = list(call(iter([listing, symbol]), timeout=TIMEOUT))
            check(f"the count of answers of reflection {version}", len(answers), 2)
            names = {service.name for service in answers[0].list_services_response.service}
            missing = SERVICES | {f"grpc.reflection.{version}.ServerReflection"}
            check(f"services missing in reflection {version}", sorted(missing - names), [])
            files = answers[1].file_descriptor_response.file_descriptor_proto
            messages = [
                f"{file.package}.{message.name}"
                for file in map(descriptor_pb2.FileDescriptorProto.FromString, files)
                for message in file.message_type
            ]
            require("the file of ErrorInfo", "google.rpc.ErrorInfo" in messages, messages)
        self.errors = Errors(self.channel)

    def who_am_i_names_tenant_and_product(self):
        for product, key in sorted(self.ready["productKeys"].items()):
            answer = self.api_keys.WhoAmI(
                self.keys.WhoAmIRequest(), metadata=bearer(key), timeout=TIMEOUT
            )
            check("tenant", answer.tenant_id, self.ready["tenantId"])
            check("product", answer.api_key.product, product)
            require("active products", product in answer.active_products, answer.active_products)
        answer, call = self.api_keys.WhoAmI.with_call(
            self.keys.WhoAmIRequest(), metadata=bearer(self.ready["adminKey"]), timeout=TIMEOUT
        )
        check("product of the administrator", answer.api_key.product, "")
        require("scopes", "hub:*" in answer.api_key.scopes, list(answer.api_key.scopes))
        metadata = [key for key, _ in (*call.initial_metadata(), *call.trailing_metadata())]
        require("x-request-id of an answer", "x-request-id" in metadata, metadata)

    def an_event_of_psa_reaches_portal(self):
        filter = {"types": ["ticket.created"], "products": ["psa"]}
        request = self.bus.SubscribeRequest(filter=filter)
        live = self.events.Subscribe(request, metadata=self.portal, timeout=TIMEOUT)
        first = next(live)
        check("the first frame", first.WhichOneof("frame"), "opened")

        event = self.ticket()
        result = self.publish(event, self.psa).results[0]
        check("an error of the event", result.HasField("error"), False)
        check("duplicate", result.duplicate, False)
        check("warnings", list(result.warnings), [])
        require("destinations", result.destinations >= 1, result.destinations)

        record = self.received(live, event.id)
        live.cancel()
        check("sequence", record.sequence, result.sequence)
        check("event id", record.event_id, result.event_id)
        check("product", record.product, "psa")
        check("tenant", record.tenant_id, self.ready["tenantId"])
        check("event", record.event, event)
        require("record time", record.record_time.seconds > 0, record.record_time)

        # The cursor from before the event leads to it again.
        request.start.cursor = first.opened.cursor
        again = self.events.Subscribe(request, metadata=self.portal, timeout=TIMEOUT)
        check("the event after the cursor", self.received(again, event.id), record)
        again.cancel()

        again = self.publish(event, self.psa).results[0]
        check("duplicate of a retry", again.duplicate, True)
        same = (result.sequence, result.event_id)
        check("position of a retry", (again.sequence, again.event_id), same)

        changed = self.ticket(id=event.id, text_data="{}")
        error = fails(lambda: self.publish(changed, self.psa))
        check("code of a reused id", error.code(), grpc.StatusCode.ALREADY_EXISTS)
        metadata = self.errors.info(error, "hub.event_bus", "EVENT_ID_REUSED")
        check("eventId", metadata.get("eventId"), result.event_id)

    def received(self, stream, event_id):
        """The record of an event from a stream; sequences rise, and every batch has a cursor."""
        last = 0
        for response in stream:
            if response.WhichOneof("frame") != "events":
                continue
            require("the cursor of a batch", response.events.cursor, response.events)
            for record in response.events.events:
                require("rising sequences", record.sequence > last, (last, record.sequence))
                last = record.sequence
                if record.event.id == event_id:
                    return record
        raise Difference(f"the stream ended before the event {event_id} came")

    def errors_say_what_is_wrong(self):
        error = fails(lambda: self.publish(self.ticket(id=""), self.psa))
        check("code of a bad event", error.code(), grpc.StatusCode.INVALID_ARGUMENT)
        metadata = self.errors.info(error, "hub.event_bus", "EVENT_INVALID")
        place = (metadata.get("index"), metadata.get("attribute"))
        check("place of the mistake", place, ("0", "id"))

        error = fails(lambda: self.publish(self.ticket(), None))
        check("code without a key", error.code(), grpc.StatusCode.UNAUTHENTICATED)
        self.errors.info(error, "hub.api_keys", "KEY_MISSING")

        empty = self.bus.PublishRequest()
        error = fails(lambda: self.events.Publish(empty, metadata=self.psa, timeout=TIMEOUT))
        check("code of an empty request", error.code(), grpc.StatusCode.INVALID_ARGUMENT)
        self.errors.info(error, "hub.core", "FIELD_INVALID")
        request = self.errors.details(error)["google.rpc.BadRequest"]
        check("invalid fields", [v.field for v in request.field_violations], ["events"])

    def a_stream_publishes_frames(self):
        event = self.ticket()
        frames = [self.bus.PublishStreamRequest(frame=1, events=[event])]
        stream = self.events.PublishStream(iter(frames), metadata=self.psa, timeout=TIMEOUT)
        acked = [r.ack for r in stream if r.WhichOneof("frame") == "ack"]
        check("acknowledged frame", [ack.acked_through for ack in acked], [1])
        check("errors", acked[0].results[0].HasField("error"), False)
        again = self.publish(event, self.psa).results[0]
        check("position", again.sequence, acked[0].results[0].sequence)

    def run(self):
        """The number of checks that failed."""
        failed = 0
        for step in (
            self.reflection_lists_the_services,
            self.who_am_i_names_tenant_and_product,
            self.an_event_of_psa_reaches_portal,
            self.a_stream_publishes_frames,
            self.errors_say_what_is_wrong,
        ):
            name = step.__name__.replace("_", " ")
            try:
                step()
                print(f"ok      {name}")
            except Exception as error:
                failed += 1
                print(f"FAILED  {name}: {error}")
                if not isinstance(error, Difference):
                    traceback.print_exc()
        return failed


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ready-file", dest="named", metavar="FILE", help="from hub dev")
    parser.add_argument("ready_file", nargs="?", metavar="FILE", help="the same")
    arguments = parser.parse_args()
    path = arguments.named or arguments.ready_file
    if path is None:
        parser.error("give the file that `hub dev --ready-file FILE` writes")
    ready = json.loads(Path(path).read_text())
    with tempfile.TemporaryDirectory() as folder, grpc.insecure_channel(ready["grpc"]) as channel:
        generate(folder)
        failed = MainJob(ready, channel).run()
    if failed:
        sys.exit(f"{failed} failed")


if __name__ == "__main__":
    main()
