//! Habits that hold for every resource.

use crate::support::{Answer, World, descriptor, over};
use bus::testing::Fake;
use contracts::images::{Get, Image, Put};
use contracts::namespaces::{Info, List as ListNamespaces};
use contracts::plugin::{List, PluginInfo, State};
use contracts::{Error, ImageName, Namespace, Page, PluginId, Timestamp};
use std::{cell::RefCell, rc::Rc};

fn plugin(id: &str, state: State) -> PluginInfo {
    PluginInfo {
        id: PluginId::new(id).unwrap(),
        state,
        cause: String::new(),
        chain: Vec::new(),
        pid: 1,
        uid: 2,
        capabilities: Vec::new(),
        privileges_reason: String::new(),
        restarts: 3,
        requires: Vec::new(),
        required_by: Vec::new(),
        memory: 4096,
        last_exit: String::new(),
        started_at: None,
        root: String::new(),
        program: String::new(),
        limits: Default::default(),
        unlimited: String::new(),
        exits: Vec::new(),
    }
}

fn image(name: &ImageName, version: u64) -> Image {
    Image {
        name: name.clone(),
        target: descriptor(),
        labels: Default::default(),
        created_at: Timestamp(0),
        updated_at: Timestamp(0),
        version,
    }
}

#[actix_rt::test]
async fn the_version_is_one_request_away() {
    let edge = World::default().start();
    let answer = edge.get("/v1/version").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json()["name"], "gantry");
    assert_eq!(answer.header("gantry-operation").len(), 32);
}

#[actix_rt::test]
async fn an_unknown_path_names_what_is_near() {
    let edge = World::default().start();
    let said = edge
        .get("/v1/namespaces/default/imagse")
        .await
        .problem(404, "NOT_FOUND");
    let near = "below /v1/namespaces/{ns} there is";
    assert!(said.contains(near) && said.contains("images"), "{said}");
    edge.get("/nothing").await.problem(404, "NOT_FOUND");
}

#[actix_rt::test]
async fn a_wrong_method_is_told_which_are_allowed() {
    let edge = World::default().start();
    let answer = edge.ask("DELETE", "/v1/version").send().await;
    answer.problem(405, "UNIMPLEMENTED");
    assert_eq!(answer.header("allow"), "GET");

    let answer = edge.get("/v1/namespaces/default/images:pull").await;
    answer.problem(405, "UNIMPLEMENTED");
    assert_eq!(answer.header("allow"), "POST");

    let said = edge.post("/v1/namespaces/default/images/a:1", "").await;
    let said = said.problem(405, "UNIMPLEMENTED");
    assert!(said.contains(":unpack"), "{said}");
}

#[actix_rt::test]
async fn a_bad_body_is_told_where() {
    let edge = World::default().start();
    let pull = "/v1/namespaces/default/images:pull";
    let said = edge
        .post(pull, "{\n \"ref\": }")
        .await
        .problem(400, "INVALID_ARGUMENT");
    assert!(said.contains("line 2 column 9"), "{said}");
    let said = edge.post(pull, r#"{"ref":"a","platfrom":"x"}"#).await;
    let said = said.problem(400, "INVALID_ARGUMENT");
    assert!(
        said.contains("`platfrom`") && said.contains("`platform`"),
        "{said}"
    );
    let said = edge.post(pull, "").await.problem(400, "INVALID_ARGUMENT");
    assert!(said.contains("missing field `ref`"), "{said}");
    let large = format!(r#"{{"ref":"{}"}}"#, "a".repeat(300 * 1024));
    edge.post(pull, &large)
        .await
        .problem(413, "RESOURCE_EXHAUSTED");
}

#[actix_rt::test]
async fn an_unknown_or_wrong_parameter_is_named() {
    let edge = World::default().start();
    let said = edge.get("/v1/namespaces/default/images?flter=a").await;
    let said = said.problem(400, "INVALID_ARGUMENT");
    assert!(
        said.contains("\"flter\"") && said.contains("filter"),
        "{said}"
    );
    for wrong in [
        "images?limit=x",
        "images?timeout=soon",
        "tasks/a/logs?follow=maybe",
    ] {
        let path = format!("/v1/namespaces/default/{wrong}");
        edge.get(&path).await.problem(400, "INVALID_ARGUMENT");
    }
    edge.get("/v1/namespaces/a..b/images")
        .await
        .problem(400, "INVALID_ARGUMENT");
    edge.get("/v1/namespaces/default/content/sha256:1")
        .await
        .problem(400, "INVALID_ARGUMENT");
}

#[actix_rt::test]
async fn a_missing_image_names_the_namespaces_that_have_it() {
    let images = Fake::new("local").on(|ctx, get: Get| match ctx.namespace()?.as_str() {
        "other" => Ok(image(&get.name, 1)),
        _ => Err(Error::not_found(format!("image {}: is not here", get.name))),
    });
    let namespaces = Fake::new("local").on(|_, _: ListNamespaces| {
        let named = |name: &str| Info {
            name: Namespace::new(name).unwrap(),
            labels: Default::default(),
            created_at: None,
        };
        Ok(Page {
            items: vec![named("default"), named("other")],
            next: String::new(),
            version: 0,
        })
    });
    let edge = World {
        images,
        namespaces,
        ..World::default()
    }
    .start();
    let path = "/v1/namespaces/default/images/docker.io/library/a:1";
    let said = edge.get(path).await.problem(404, "NOT_FOUND");
    assert!(said.ends_with("it is in namespace other"), "{said}");
    let there = edge
        .get("/v1/namespaces/other/images/docker.io%2Flibrary%2Fa:1")
        .await;
    assert_eq!(there.json()["name"], "docker.io/library/a:1");
    assert_eq!(there.header("etag"), "\"1\"");
}

#[actix_rt::test]
async fn a_failed_condition_is_412_and_an_unknown_one_501() {
    let images = Fake::new("local").on(|_, put: Put| match put.version {
        Some(7) => Ok(image(&put.name, 8)),
        _ => Err(Error::aborted(format!("image {}: has version 7", put.name))),
    });
    let edge = World {
        images,
        ..World::default()
    }
    .start();
    let body = r#"{"target":{"media_type":"a","digest":"sha256:DIGEST","size":1}}"#;
    let body = body.replace("DIGEST", &"a".repeat(64));
    let put = |version: &str| {
        let path = "/v1/namespaces/default/images/example.org/a:1";
        edge.ask("PUT", path)
            .header("if-match", version)
            .body(body.clone())
    };
    put("\"6\"").send().await.problem(412, "ABORTED");
    let made = put("\"7\"").send().await;
    assert_eq!((made.status.as_u16(), made.header("etag")), (200, "\"8\""));
    put("new").send().await.problem(400, "INVALID_ARGUMENT");

    let path = "/v1/namespaces/default/leases/a";
    let lease = edge.ask("DELETE", path).header("if-match", "\"1\"");
    lease.send().await.problem(501, "UNIMPLEMENTED");
}

#[actix_rt::test]
async fn a_dry_run_is_refused_where_it_cannot_tell() {
    let edge = World::default().start();
    let path = "/v1/namespaces/default/tasks/a:kill?dry_run=true";
    let said = edge.post(path, "").await.problem(501, "UNIMPLEMENTED");
    assert!(said.starts_with("dry_run:"), "{said}");
}

#[actix_rt::test]
async fn an_idempotency_key_stands_for_the_same_operation_on_the_same_path() {
    let seen = Rc::new(RefCell::new(Vec::new()));
    let noted = seen.clone();
    let images = Fake::new("local").on(move |ctx, get: Get| {
        noted
            .borrow_mut()
            .push((ctx.operation.to_string(), ctx.lease.map(|l| l.to_string())));
        Ok(image(&get.name, 1))
    });
    let edge = World {
        images,
        ..World::default()
    }
    .start();
    let get = |name: &str| {
        let path = format!("/v1/namespaces/default/images/{name}");
        edge.ask("GET", &path).header("gantry-lease", "l1")
    };
    let first = get("a").header("idempotency-key", "k").send().await;
    let again = get("a").header("idempotency-key", "k").send().await;
    let other = get("b").header("idempotency-key", "k").send().await;
    let fresh = get("a").send().await;
    let id = |answer: &Answer| answer.header("gantry-operation").to_owned();
    assert_eq!(id(&first), id(&again));
    assert_ne!(id(&first), id(&other));
    assert_ne!(id(&first), id(&fresh));
    {
        let seen = seen.borrow();
        assert_eq!(seen[0].0, seen[1].0);
        assert_eq!(seen[0].1.as_deref(), Some("l1"));
    }
    get("a")
        .header("idempotency-key", &"k".repeat(300))
        .send()
        .await
        .problem(400, "INVALID_ARGUMENT");
}

#[actix_rt::test]
async fn readiness_names_who_is_not_and_metrics_count() {
    let supervisor = Fake::new("core").on(|_, _: List| {
        Ok(vec![
            plugin("content/local", State::Ready),
            plugin("tasks/local", State::Backoff),
        ])
    });
    let edge = World {
        supervisor,
        ..World::default()
    }
    .start();
    assert_eq!(edge.get("/healthz").await.text(), "ok\n");
    let ready = edge.get("/readyz").await;
    assert_eq!(ready.status, 503);
    assert_eq!(ready.json()["waiting"][0]["id"], "tasks/local");
    assert_eq!(ready.json()["waiting"][0]["state"], "backoff");
    let metrics = edge.get("/metrics").await;
    for line in [
        "gantry_plugin_up{plugin=\"content/local\"} 1",
        "gantry_plugin_up{plugin=\"tasks/local\"} 0",
        "gantry_plugin_memory_bytes{plugin=\"tasks/local\"} 4096",
        "gantry_http_requests_total{method=\"GET\",route=\"/readyz\",status=\"503\"} 1",
    ] {
        assert!(
            metrics.text().contains(line),
            "{line} in {}",
            metrics.text()
        );
    }
    let plugins = edge.get("/v1/plugins").await.json();
    assert_eq!(plugins["items"][1]["restarts"], 3);
}

#[actix_rt::test]
async fn a_missing_plugin_is_named_with_its_chain() {
    let edge = World::default().start();
    edge.node
        .declare_failed("images/local", "its disk is full")
        .unwrap();
    let answer = edge.get("/v1/namespaces/default/images/a").await;
    let said = answer.problem(503, "UNAVAILABLE");
    assert!(said.contains("its disk is full"), "{said}");
    assert_eq!(answer.json()["plugin"], "images/local");
    assert_eq!(answer.json()["chain"][0], "images/local");
}

#[actix_rt::test]
async fn what_is_not_offered_yet_says_what_to_use() {
    let edge = World::default().start();
    for (path, instead) in [
        ("/v1/namespaces/default/tasks/a/attach", ":exec?wait=true"),
        ("/v1/namespaces/default/tasks/a/exec", ":exec?wait=true"),
        ("/docs", "/openapi.json"),
        ("/", "/v1/plugins"),
    ] {
        let said = edge.get(path).await.problem(501, "UNIMPLEMENTED");
        assert!(said.contains(instead), "{said}");
    }
    let restart = r#"{"image":"a","restart":"always"}"#;
    let path = "/v1/namespaces/default/containers";
    edge.post(path, restart).await.problem(501, "UNIMPLEMENTED");
}

#[actix_rt::test]
async fn any_method_can_be_called_by_name() {
    let images = Fake::new("local").on(|_, get: Get| Ok(image(&get.name, 1)));
    let edge = World {
        images,
        ..World::default()
    }
    .start();
    let called = edge
        .post("/v1/call/images.get?namespace=default", r#"{"name":"a"}"#)
        .await;
    assert_eq!(called.json()["name"], "a");
    let said = edge
        .post("/v1/call/images.gett", "{}")
        .await
        .problem(404, "NOT_FOUND");
    assert!(said.contains("images.get"), "{said}");
}

#[actix_rt::test]
async fn the_description_lists_every_route_and_every_shape_it_refers_to() {
    let edge = World::default().start();
    let document = edge.get("/openapi.json").await.json();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    let paths = document["paths"].as_object().unwrap();
    for path in [
        "/v1/version",
        "/v1/namespaces/{ns}/images/{name}",
        "/v1/namespaces/{ns}/images/{name}:unpack",
        "/v1/namespaces/{ns}/containers:run",
        "/v1/events",
        "/v1/gc",
    ] {
        assert!(paths.contains_key(path), "{path}");
    }
    let image = &paths["/v1/namespaces/{ns}/images/{name}"];
    assert!(
        ["get", "put", "patch", "delete"]
            .iter()
            .all(|method| image[method].is_object())
    );
    let pull = &paths["/v1/namespaces/{ns}/images:pull"]["post"]["responses"];
    for (status, schema) in [("202", "Operation"), ("default", "Problem")] {
        assert!(
            pull[status]
                .to_string()
                .contains(&format!("schemas/{schema}\"")),
            "{pull}"
        );
    }
    for (path, method, body, status, answer) in [
        ("/v1/reload", "post", "", "200", "Reloaded"),
        ("/v1/upgrade", "post", "UpgradeRequest", "202", "Upgrade"),
        ("/v1/upgrade", "get", "", "200", "Upgrade"),
        ("/v1/scrub", "post", "", "200", "Scrub"),
        ("/v1/scrub", "post", "", "202", "Operation"),
        ("/v1/audit", "post", "", "200", "Audit"),
        ("/v1/audit", "get", "", "200", "Audit"),
    ] {
        let route = &paths[path][method];
        let taken = route["requestBody"].to_string();
        let refers = |text: &str, name: &str| text.contains(&format!("schemas/{name}\""));
        assert!(body.is_empty() || refers(&taken, body), "{path}: {route}");
        for (status, answer) in [(status, answer), ("default", "Problem")] {
            let said = route["responses"][status].to_string();
            assert!(refers(&said, answer), "{path} {status}: {route}");
        }
    }
    let list = &paths["/v1/namespaces/{ns}/leases/{id}/resources"]["get"]["responses"]["200"];
    assert!(list.to_string().contains("schemas/Resource\""), "{list}");
    let schemas = document["components"]["schemas"].as_object().unwrap();
    let text = document.to_string();
    let referred = text.split("#/components/schemas/").skip(1);
    for name in referred.map(|rest| rest.split('"').next().unwrap()) {
        assert!(schemas.contains_key(name), "{name}");
    }
    let mut ids: Vec<&str> = paths
        .values()
        .flat_map(|item| item.as_object().unwrap().values())
        .filter_map(|operation| operation["operationId"].as_str())
        .collect();
    let all = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), all, "operation ids are unique");
    assert!(all > 80, "{all}");
}

#[actix_rt::test]
async fn tcp_wants_the_token_for_everything_but_its_health() {
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let edge = World {
        config: format!(r#"{{"listen":["127.0.0.1:{port}"]}}"#),
        ..World::default()
    }
    .start();
    let token = edge.dir.path().join("root/gateway/http/token");
    let token = std::fs::read_to_string(token).unwrap();
    let get = async |path: &str, authorization: Option<String>| {
        let mut request = hyper::Request::builder().uri(path).header("host", "gantry");
        if let Some(authorization) = authorization {
            request = request.header("authorization", authorization);
        }
        let stream = tokio::net::TcpStream::connect(("127.0.0.1", port))
            .await
            .unwrap();
        over(stream, request, bytes::Bytes::new()).await
    };
    assert_eq!(get("/healthz", None).await.status(), 200);
    let refused = get("/v1/version", None).await;
    assert_eq!(refused.status(), 401);
    assert!(
        refused.headers()["www-authenticate"]
            .to_str()
            .unwrap()
            .starts_with("Bearer")
    );
    assert_eq!(
        get("/v1/version", Some("Bearer wrong".into()))
            .await
            .status(),
        401
    );
    assert_eq!(get("/v1/nothing", None).await.status(), 401);
    let shown = format!("Bearer {}", token.trim());
    assert_eq!(get("/v1/version", Some(shown)).await.status(), 200);
}

#[actix_rt::test]
async fn a_head_request_is_a_get_without_its_body() {
    let edge = World::default().start();
    let get = edge.get("/v1/version").await;
    let head = edge.ask("HEAD", "/v1/version").send().await;
    assert_eq!((head.status.as_u16(), head.body.len()), (200, 0));
    assert_eq!(head.header("content-length"), get.body.len().to_string());
    edge.ask("HEAD", "/v1/events").send().await;
}

#[actix_rt::test]
async fn a_short_list_has_filters_and_pages_too() {
    let supervisor = Fake::new("core").on(|_, _: List| {
        let ready = plugin("content/local", State::Ready);
        Ok(vec![ready, plugin("tasks/local", State::Backoff)])
    });
    let edge = World {
        supervisor,
        ..World::default()
    }
    .start();
    let waiting = edge.get("/v1/plugins?filter=state!%3Dready").await.json();
    assert_eq!(waiting["items"].as_array().unwrap().len(), 1);
    assert_eq!(waiting["items"][0]["id"], "tasks/local");
    let first = edge.get("/v1/plugins?limit=1").await.json();
    assert_eq!(first["next_page_token"], "1");
    edge.get("/v1/plugins?filter=%3D")
        .await
        .problem(400, "INVALID_ARGUMENT");
}

#[actix_rt::test]
async fn a_body_that_nobody_reads_is_refused_with_the_way_to_say_it() {
    let edge = World::default().start();
    let answer = edge.post("/v1/scrub", r#"{"repair": true}"#).await;
    assert_eq!(answer.status, 400);
    let detail = answer.text();
    assert!(detail.contains("/v1/scrub takes none"), "{detail}");
    assert!(detail.contains("repair"), "{detail}");
    let id = "/v1/plugins/images/local:restart";
    let nothing = edge.post(id, "{}").await;
    assert!(!nothing.text().contains("takes none"), "{}", nothing.text());
}
