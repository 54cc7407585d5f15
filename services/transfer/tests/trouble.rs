//! Registries that cut, lie, refuse and redirect.

mod support;

use contracts::{Code, Ref};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};
use support::{
    House, Outcome, anonymous,
    images::Image,
    message,
    registry::serve,
    server::{Answer, Server},
    user,
};

fn image() -> Image {
    Image::new("amd64", &[5], 700_000)
}

/// Serves `image`, but lets `odd` answer for blobs that are layers.
fn server(
    image: &Image,
    odd: impl Fn(usize, &support::server::Request, &[u8]) -> Answer + Send + Sync + 'static,
) -> std::io::Result<Server> {
    let (image, tries) = (image.clone(), AtomicUsize::new(0));
    Server::start(move |request| {
        let layers = image.layers();
        match layers
            .iter()
            .find(|(layer, _)| request.path.contains(&format!("blobs/{}", layer.digest)))
        {
            Some((_, bytes)) => odd(tries.fetch_add(1, Ordering::SeqCst), request, bytes),
            None => serve(&image, request),
        }
    })
}

#[actix_rt::test]
async fn a_connection_that_is_cut_again_and_again_goes_on_where_it_was() -> Outcome {
    let image = image();
    let server = server(&image, |_, request, bytes| {
        Answer::ranged(request, bytes).cut(60_000)
    })?;
    let house = House::new()?;
    house
        .pull(&format!("{}/app:1", server.name()), &anonymous())
        .await?;
    let (layer, bytes) = &image.layers()[0];
    assert_eq!(house.shelf.get(&layer.digest).as_ref(), Some(bytes));
    let asked: Vec<usize> = server
        .asked(layer.digest.as_str())
        .iter()
        .map(|request| request.from())
        .collect();
    assert!(asked.len() > 10 && asked.is_sorted(), "{asked:?}");
    assert_eq!(asked[..3], [0, 60_000, 120_000]);
    Ok(())
}

#[actix_rt::test]
async fn a_server_that_ignores_ranges_costs_time_but_not_the_image() -> Outcome {
    let image = image();
    let server = server(&image, |tried, _, bytes| {
        let answer = Answer::new(200).body(bytes);
        if tried < 2 {
            answer.cut(200_000 * (tried + 1))
        } else {
            answer
        }
    })?;
    let house = House::new()?;
    house
        .pull(&format!("{}/app:1", server.name()), &anonymous())
        .await?;
    let (layer, bytes) = &image.layers()[0];
    assert_eq!(house.shelf.get(&layer.digest).as_ref(), Some(bytes));
    Ok(())
}

#[actix_rt::test]
async fn what_an_earlier_process_fetched_is_not_fetched_again() -> Outcome {
    let image = image();
    let server = server(&image, |_, request, bytes| Answer::ranged(request, bytes))?;
    let house = House::new()?;
    let (layer, bytes) = &image.layers()[0];
    house.shelf.begin(
        Ref::new(format!("blob-{}", layer.digest))?,
        &bytes[..500_000],
    );
    house
        .pull(&format!("{}/app:1", server.name()), &anonymous())
        .await?;
    assert_eq!(house.shelf.get(&layer.digest).as_ref(), Some(bytes));
    assert_eq!(server.asked(layer.digest.as_str())[0].from(), 500_000);
    Ok(())
}

#[actix_rt::test]
async fn damaged_bytes_of_an_earlier_process_are_fetched_anew() -> Outcome {
    let image = image();
    let server = server(&image, |_, request, bytes| Answer::ranged(request, bytes))?;
    let house = House::new()?;
    let (layer, bytes) = &image.layers()[0];
    house.shelf.begin(
        Ref::new(format!("blob-{}", layer.digest))?,
        &vec![0; 500_000],
    );
    house
        .pull(&format!("{}/app:1", server.name()), &anonymous())
        .await?;
    assert_eq!(house.shelf.get(&layer.digest).as_ref(), Some(bytes));
    let asked: Vec<usize> = server
        .asked(layer.digest.as_str())
        .iter()
        .map(|request| request.from())
        .collect();
    assert_eq!(asked, [500_000, 0]);
    Ok(())
}

#[actix_rt::test]
async fn a_content_store_that_restarts_is_written_on_from_what_it_has() -> Outcome {
    let image = image();
    let server = server(&image, |_, request, bytes| Answer::ranged(request, bytes))?;
    let house = House::new()?;
    let resolved = house
        .resolve(&format!("{}/app:1", server.name()), &anonymous())
        .await?;
    house.shelf.break_after(&[150_000, 250_000]);
    let (layer, bytes) = &image.layers()[0];
    let told = house
        .fetch(resolved.name.as_str(), layer, &anonymous())
        .await?;
    assert_eq!(house.shelf.get(&layer.digest).as_ref(), Some(bytes));
    assert_eq!(house.shelf.offsets(), [0, 150_000, 400_000]);
    assert!(
        told.last()
            .is_some_and(|last| last.done && last.offset == layer.size),
        "{told:?}"
    );
    Ok(())
}

#[actix_rt::test]
async fn wrong_bytes_are_data_loss_and_a_mirror_with_wrong_bytes_is_passed_over() -> Outcome {
    let image = image();
    let wrong = |_, _: &support::server::Request, bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        bytes[1000] ^= 1;
        Answer::new(200).body(bytes)
    };
    let liar = server(&image, wrong)?;
    let house = House::new()?;
    let (code, text) = message(
        house
            .pull(&format!("{}/app:1", liar.name()), &anonymous())
            .await,
    );
    assert_eq!(code, Some(Code::DataLoss), "{text}");

    let good = server(&image, |_, request, bytes| Answer::ranged(request, bytes))?;
    let house = House::new()?;
    house.rules(
        &good.name(),
        &format!("[host.\"http://{}\"]\n", liar.name()),
    )?;
    house
        .pull(&format!("{}/app:1", good.name()), &anonymous())
        .await?;
    assert_eq!(house.shelf.count(), image.parts.len());
    assert_eq!(
        good.asked("/blobs/").len(),
        1,
        "only what the mirror had wrong came from the registry"
    );
    let told = format!("?ns={}", good.name().replace(':', "%3A"));
    assert_eq!(
        liar.asked("ns=").len(),
        4,
        "tag, manifest, config and layer"
    );
    assert!(
        liar.asked("ns=")
            .iter()
            .all(|request| request.path.ends_with(&told))
    );
    Ok(())
}

#[actix_rt::test]
async fn truncated_and_oversized_bodies_are_data_loss() -> Outcome {
    let image = image();
    for change in [-1000_isize, 1000] {
        let odd = server(&image, move |_, _, bytes| {
            let mut bytes = bytes.to_vec();
            bytes.resize(bytes.len().saturating_add_signed(change), 0);
            Answer::new(200).body(bytes)
        })?;
        let (code, text) = message(
            House::new()?
                .pull(&format!("{}/app:1", odd.name()), &anonymous())
                .await,
        );
        assert_eq!(code, Some(Code::DataLoss), "{text}");
        assert!(
            text.contains(&odd.name()) && text.contains("expected"),
            "{text}"
        );
    }
    Ok(())
}

#[actix_rt::test]
async fn a_busy_registry_is_asked_again_as_it_wishes_and_not_for_ever() -> Outcome {
    let image = image();
    let server = server(&image, |tried, request, bytes| match tried {
        0 => Answer::new(429).header("retry-after", "0"),
        1 => Answer::new(503),
        _ => Answer::ranged(request, bytes),
    })?;
    House::new()?
        .pull(&format!("{}/app:1", server.name()), &anonymous())
        .await?;

    let busy = Server::start(|_| Answer::new(429).header("retry-after", "3600"))?;
    let (code, text) = message(
        House::new()?
            .resolve(&format!("{}/app:1", busy.name()), &anonymous())
            .await,
    );
    assert_eq!(code, Some(Code::ResourceExhausted), "{text}");
    assert_eq!(busy.seen().len(), 1, "an hour is not waited for");
    let broken = Server::start(|_| Answer::new(500))?;
    let (code, _) = message(
        House::new()?
            .resolve(&format!("{}/app:1", broken.name()), &anonymous())
            .await,
    );
    assert_eq!((code, broken.seen().len()), (Some(Code::Unavailable), 3));
    Ok(())
}

#[actix_rt::test]
async fn a_redirect_to_another_host_does_not_carry_credentials_or_headers() -> Outcome {
    let image = image();
    let storage_image = image.clone();
    let storage = Server::start(move |request| {
        let found = storage_image
            .parts
            .iter()
            .find(|(part, _)| request.path.contains(part.digest.as_str()));
        found.map_or(Answer::new(404), |(_, bytes)| {
            Answer::ranged(request, bytes)
        })
    })?;
    let target = storage.name();
    let front_image = image.clone();
    let front = Server::start(move |request| match request.header("authorization") {
        None => Answer::new(401).header("www-authenticate", "Basic realm=\"story\""),
        Some(_) if request.path.contains("/blobs/") => {
            let path = request.path.rsplit('/').next().unwrap_or_default();
            Answer::new(307).header(
                "location",
                format!("http://{target}/store/{path}?signature=x"),
            )
        }
        Some(_) => serve(&front_image, request),
    })?;
    let house = House::new()?;
    house.rules(
        &front.name(),
        &format!(
            "server = \"http://{}\"\n[header]\nx-story = \"private\"\n",
            front.name()
        ),
    )?;
    house
        .pull(&format!("{}/app:1", front.name()), &user("bob", "secret"))
        .await?;
    assert_eq!(house.shelf.count(), image.parts.len());
    assert!(!storage.seen().is_empty());
    for request in storage.seen() {
        assert_eq!(
            (request.header("authorization"), request.header("x-story")),
            (None, None)
        );
    }
    assert!(
        front
            .seen()
            .iter()
            .all(|request| request.header("x-story") == Some("private"))
    );
    Ok(())
}

#[actix_rt::test]
async fn credentials_are_for_the_registry_and_not_for_its_mirrors() -> Outcome {
    let image = image();
    let (a, b) = (image.clone(), image.clone());
    let mirror = Server::start(move |request| match request.header("authorization") {
        None => Answer::new(401).header("www-authenticate", "Basic realm=\"mirror\""),
        Some(_) => serve(&a, request),
    })?;
    let registry = Server::start(move |request| match request.header("authorization") {
        None => Answer::new(401).header("www-authenticate", "Basic realm=\"registry\""),
        Some(_) => serve(&b, request),
    })?;
    let house = House::new()?;
    house.rules(
        &registry.name(),
        &format!("[host.\"http://{}\"]\n", mirror.name()),
    )?;
    house
        .pull(
            &format!("{}/app:1", registry.name()),
            &user("bob", "secret"),
        )
        .await?;
    assert!(!mirror.seen().is_empty());
    assert!(
        mirror
            .seen()
            .iter()
            .all(|request| request.header("authorization").is_none())
    );
    Ok(())
}

#[actix_rt::test]
async fn an_unreachable_registry_is_named_with_the_cause_and_a_mirror_that_is_down_costs_nothing()
-> Outcome {
    let closed = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.local_addr()?.to_string()
    };
    let house = House::new()?;
    let (code, text) = message(
        house
            .resolve(&format!("{closed}/app:1"), &anonymous())
            .await,
    );
    assert_eq!(code, Some(Code::Unavailable));
    assert!(text.contains(&closed) && text.contains("refused"), "{text}");
    let (code, text) = message(
        house
            .resolve("no-such-host.invalid/app:1", &anonymous())
            .await,
    );
    assert_eq!(code, Some(Code::Unavailable));
    assert!(text.contains("no-such-host.invalid"), "{text}");

    let image = image();
    let server = server(&image, |_, request, bytes| Answer::ranged(request, bytes))?;
    house.rules(&server.name(), &format!("[host.\"http://{closed}\"]\n"))?;
    house
        .pull(&format!("{}/app:1", server.name()), &anonymous())
        .await?;
    Ok(())
}

#[actix_rt::test]
async fn a_host_is_only_asked_for_what_its_rule_allows() -> Outcome {
    let image = image();
    let mirror = server(&image, |_, request, bytes| Answer::ranged(request, bytes))?;
    let registry = server(&image, |_, request, bytes| Answer::ranged(request, bytes))?;
    let house = House::new()?;
    house.rules(
        &registry.name(),
        &format!(
            "[host.\"http://{}/mirror\"]\ncapabilities = [\"pull\"]\noverride_path = true\n",
            mirror.name()
        ),
    )?;
    house
        .pull(&format!("{}/app:1", registry.name()), &anonymous())
        .await?;
    assert!(
        mirror.asked("/manifests/1").is_empty(),
        "the tag is for the registry to resolve"
    );
    assert_eq!(
        registry.seen().len(),
        1,
        "everything else came from the mirror"
    );
    assert!(
        mirror
            .seen()
            .iter()
            .all(|request| request.path.starts_with("/mirror/app/"))
    );
    Ok(())
}

#[actix_rt::test]
async fn a_registry_without_head_or_digest_header_is_resolved_from_its_bytes() -> Outcome {
    let image = image();
    let shown = image.clone();
    let old = Server::start(move |request| {
        if request.method == "HEAD" {
            return Answer::new(405);
        }
        let mut answer = serve(&shown, request);
        answer
            .headers
            .retain(|(name, _)| name != "docker-content-digest");
        answer
    })?;
    let resolved = House::new()?
        .pull(&format!("{}/app:1", old.name()), &anonymous())
        .await?;
    assert_eq!(resolved.target.digest, image.target.digest);
    Ok(())
}

#[actix_rt::test]
async fn a_full_disk_ends_a_fetch_with_its_cause() -> Outcome {
    let image = image();
    let server = server(&image, |_, request, bytes| Answer::ranged(request, bytes))?;
    let name = format!("{}/app:1", server.name());
    let house = House::new()?;
    house.shelf.fill();
    let (code, text) = message(house.pull(&name, &anonymous()).await);
    assert_eq!(code, Some(Code::ResourceExhausted), "{text}");
    let house = House::new()?;
    let resolved = house.resolve(&name, &anonymous()).await?;
    house.shelf.fill_meanwhile();
    let layer = &image.layers()[0].0;
    let (code, text) = message(
        house
            .fetch(resolved.name.as_str(), layer, &anonymous())
            .await,
    );
    assert_eq!(code, Some(Code::ResourceExhausted), "{text}");
    Ok(())
}

/// A token server and a registry that takes only its tokens. Tokens are used up after `life` requests.
fn token_pair(image: &Image, life: usize) -> std::io::Result<(Server, Server)> {
    let issued = Arc::new(AtomicUsize::new(0));
    let (count, used) = (Arc::clone(&issued), Arc::new(AtomicUsize::new(0)));
    let fresh = Arc::clone(&used);
    let tokens = Server::start(move |request| {
        let identity = request.method == "POST"
            && String::from_utf8_lossy(&request.body).contains("refresh_token=identity");
        let password = request.header("authorization") == Some("Basic Ym9iOnJpZ2h0");
        if !identity && !password {
            return Answer::new(401);
        }
        fresh.store(0, Ordering::SeqCst);
        let number = count.fetch_add(1, Ordering::SeqCst) + 1;
        Answer::new(200).body(format!(r#"{{"token":"t{number}","expires_in":300}}"#))
    })?;
    let (realm, image) = (tokens.name(), image.clone());
    let registry = Server::start(move |request| {
        let wanted = format!("Bearer t{}", issued.load(Ordering::SeqCst));
        if request.header("authorization") == Some(wanted.as_str())
            && used.fetch_add(1, Ordering::SeqCst) < life
        {
            return serve(&image, request);
        }
        let error = if request.header("authorization").is_some() {
            ",error=\"invalid_token\""
        } else {
            ""
        };
        let challenge = format!(
            "Bearer realm=\"http://{realm}/token\",service=\"story\",scope=\"repository:app:pull\"{error}"
        );
        Answer::new(401).header("www-authenticate", challenge)
    })?;
    Ok((tokens, registry))
}

#[actix_rt::test]
async fn a_bearer_token_is_fetched_once_kept_and_renewed_when_it_is_refused() -> Outcome {
    let image = image();
    let (tokens, registry) = token_pair(&image, 100)?;
    let house = House::new()?;
    house
        .pull(&format!("{}/app:1", registry.name()), &user("bob", "right"))
        .await?;
    assert_eq!(tokens.seen().len(), 1);
    assert!(
        tokens.seen()[0]
            .path
            .contains("service=story&scope=repository%3Aapp%3Apull"),
        "{:?}",
        tokens.seen()[0]
    );

    let (tokens, registry) = token_pair(&image, 2)?;
    House::new()?
        .pull(&format!("{}/app:1", registry.name()), &user("bob", "right"))
        .await?;
    assert_eq!(
        tokens.seen().len(),
        2,
        "the head and three bodies, two per token"
    );
    Ok(())
}

#[actix_rt::test]
async fn an_identity_token_is_exchanged_by_post_and_a_wrong_password_is_not_shown() -> Outcome {
    let image = image();
    let (tokens, registry) = token_pair(&image, 100)?;
    let mut access = user("", "");
    if let Some(auth) = &mut access.auth {
        auth.identity_token = "identity".into();
    }
    let name = format!("{}/app:1", registry.name());
    House::new()?.pull(&name, &access).await?;
    assert!(
        tokens
            .seen()
            .iter()
            .all(|request| request.method == "POST" && !request.path.contains("identity"))
    );
    let (code, text) = message(House::new()?.resolve(&name, &user("bob", "hunter2")).await);
    assert_eq!(code, Some(Code::Unauthenticated));
    assert!(
        text.contains("\"bob\"") && !text.contains("hunter2"),
        "{text}"
    );
    Ok(())
}

#[actix_rt::test]
async fn a_caller_without_credentials_does_not_ride_on_another_ones_token() -> Outcome {
    let image = image();
    let (_tokens, registry) = token_pair(&image, 100)?;
    let house = House::new()?;
    let name = format!("{}/app:1", registry.name());
    house.pull(&name, &user("bob", "right")).await?;
    let (code, _) = message(house.resolve(&name, &anonymous()).await);
    assert_eq!(code, Some(Code::Unauthenticated));
    Ok(())
}

#[actix_rt::test]
async fn a_forbidden_repository_is_denied_with_the_registrys_words_made_harmless() -> Outcome {
    let server = Server::start(|request| match request.method.as_str() {
        "HEAD" => Answer::new(405),
        _ => Answer::new(403).body(&b"{\"errors\":[{\"message\":\"not \\u001b[31mfor you\"}]}"[..]),
    })?;
    let (code, text) = message(
        House::new()?
            .resolve(&format!("{}/app:1", server.name()), &anonymous())
            .await,
    );
    assert_eq!(code, Some(Code::PermissionDenied));
    assert!(
        text.contains("(it says: not [31mfor you)") && !text.contains('\u{1b}'),
        "{text}"
    );
    Ok(())
}

#[actix_rt::test]
async fn a_document_that_lies_about_its_kind_is_refused_before_it_is_stored() -> Outcome {
    let image = image();
    let index = Image::index(std::slice::from_ref(&image));
    // Sent under the manifest's type, so that a client which trusts the header reads it as an image.
    let bytes = index
        .parts
        .last()
        .map(|(_, bytes)| bytes.clone())
        .unwrap_or_default();
    let digest = index.target.digest.to_string();
    let server = Server::start(move |_| {
        Answer::new(200)
            .header("content-type", transfer::manifest::OCI_MANIFEST)
            .header("docker-content-digest", digest.clone())
            .body(bytes.clone())
    })?;
    let house = House::new()?;
    let (code, text) = message(
        house
            .pull(&format!("{}/app:1", server.name()), &anonymous())
            .await,
    );
    assert_eq!(code, Some(Code::DataLoss), "{text}");
    assert_eq!(house.shelf.count(), 0);
    Ok(())
}
