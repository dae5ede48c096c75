// Uses the client that openapi-generator has generated for Java, as an application would.

import java.util.List;
import java.util.Map;
import java.util.UUID;
import org.openapitools.client.ApiClient;
import org.openapitools.client.ApiException;
import org.openapitools.client.ApiResponse;
import org.openapitools.client.api.HashesApi;
import org.openapitools.client.api.RoomsApi;
import org.openapitools.client.model.EventList;
import org.openapitools.client.model.FieldValue;
import org.openapitools.client.model.HashValue;
import org.openapitools.client.model.PatchAnswer;
import org.openapitools.client.model.Publish;
import org.openapitools.client.model.Published;
import org.openapitools.client.model.SetField;

public class UseClient {
    static void check(String what, boolean holds) {
        System.out.println((holds ? "ok - " : "not ok - ") + what);
        if (!holds) System.exit(1);
    }

    interface Call {
        void run() throws ApiException;
    }

    static ApiException failure(Call call) {
        try {
            call.run();
        } catch (ApiException failure) {
            return failure;
        }
        throw new AssertionError("not ok - the call fails");
    }

    public static void main(String[] arguments) throws ApiException {
        ApiClient client = new ApiClient().setBasePath(System.getenv("ROOMCAST_URL"));
        RoomsApi rooms = new RoomsApi(client);
        HashesApi hashes = new HashesApi(client);
        String name = "openapi-generator-java-" + UUID.randomUUID();

        Published published = rooms.publishEvent(name, new Publish().event("tick").data(Map.of("n", 1)), null, null);
        EventList log = rooms.listEvents(name, null, null, null);
        check("the log holds what was published", log.getEvents().get(0).getId().equals(published.getId()));
        check("the log has no gap", log.getGap() == null);

        ApiException absent = failure(() -> hashes.getField(name, "colour", null, null));
        check("a field that is absent is 404", absent.getCode() == 404);
        check("the 404 is a problem document", absent.getResponseBody().contains("\"code\":\"field_not_found\""));

        ApiResponse<FieldValue> created = hashes.setFieldWithHttpInfo(name, "colour", new SetField().value("green"), null, null);
        check("a new field is 201", created.getStatusCode() == 201);
        String etag = created.getHeaders().get("etag").get(0);
        hashes.setField(name, "colour", new SetField().value("red"), etag, null);
        ApiException refused = failure(() -> hashes.setField(name, "colour", new SetField().value("blue"), etag, null));
        check("a write whose condition does not hold is 412", refused.getCode() == 412);
        check("the 412 has the present value", refused.getResponseBody().contains("\"present\":{\"value\":\"red\"}"));

        hashes.patchFields(name, Map.of("a", "1", "b", "1"), null);
        PatchAnswer patched = hashes.patchFields(name, Map.of("a", "2"), List.of("b", "colour"));
        check("a patch sets and removes", patched.getReplaced() == 1 && patched.getRemoved() == 2);
        Map<String, HashValue> fields = hashes.listFields(name, null, null, null).getFields();
        check("the hash has what is left", fields.size() == 1 && fields.get("a").getValue().equals("2"));
        System.exit(0); // OkHttp's threads would keep the process for a minute.
    }
}
