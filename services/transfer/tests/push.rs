//! What a push sends, in which order, and what it spares.

mod support;

use contracts::{Code, Labels};
use std::{
    collections::HashSet,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};
use support::{
    House, Outcome, anonymous, ctx,
    images::Image,
    message,
    server::{Answer, Request, Server},
    user,
};

/// Takes whatever is sent, mounts when `mounts`, and lets `odd` answer first.
fn taker(
    mounts: bool,
    odd: impl Fn(&Request) -> Option<Answer> + Send + Sync + 'static,
) -> std::io::Result<Server> {
    let here: Arc<Mutex<HashSet<String>>> = Arc::default();
    Server::start(move |request| {
        if let Some(answer) = odd(request) {
            return answer;
        }
        let mut here = here.lock().unwrap_or_else(PoisonError::into_inner);
        let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
        let name = path.rsplit('/').next().unwrap_or_default().to_owned();
        match request.method.as_str() {
            "HEAD" if here.contains(&name) => Answer::new(200),
            "HEAD" => Answer::new(404),
            "POST" if mounts && query.contains("mount=") => Answer::new(201),
            "POST" => Answer::new(202).header("location", "/upload/1?state=x"),
            "PUT" => {
                let digest = support::digest(&request.body).to_string();
                here.insert(digest.clone());
                let named =
                    query.replace("%3A", ":").contains(&digest) || path.contains("/manifests/");
                Answer::new(if named { 201 } else { 400 })
            }
            _ => Answer::new(405),
        }
    })
}

fn house(image: &Image) -> contracts::Result<House> {
    let house = House::new()?;
    image.store(&house.shelf);
    Ok(house)
}

#[actix_rt::test]
async fn children_are_sent_before_parents_and_the_tag_is_the_last() -> Outcome {
    let image = Image::index(&[
        Image::new("amd64", &[1, 2], 10_000),
        Image::new("arm64", &[1, 3], 10_000),
    ]);
    let server = taker(false, |_| None)?;
    let told = house(&image)?
        .push(
            &format!("{}/app:1", server.name()),
            &image.target,
            &anonymous(),
        )
        .await?;
    let puts: Vec<String> = server
        .seen()
        .into_iter()
        .filter(|r| r.method == "PUT")
        .map(|r| r.path)
        .collect();
    let kinds: Vec<&str> = puts
        .iter()
        .map(|path| {
            if path.contains("/manifests/") {
                "m"
            } else {
                "b"
            }
        })
        .collect();
    assert_eq!(
        kinds,
        ["b", "b", "b", "b", "b", "m", "m", "m"],
        "a shared layer is sent once"
    );
    assert!(
        puts.last()
            .is_some_and(|path| path.ends_with("/app/manifests/1")),
        "{puts:?}"
    );
    let finished: HashSet<&str> = told
        .iter()
        .filter(|told| told.done)
        .map(|told| told.name.as_str())
        .collect();
    assert!(
        image
            .parts
            .iter()
            .all(|(part, _)| finished.contains(part.digest.as_str())),
        "{finished:?}"
    );
    Ok(())
}

#[actix_rt::test]
async fn what_is_there_is_not_sent_again() -> Outcome {
    let image = Image::new("amd64", &[1, 2], 10_000);
    let server = taker(false, |_| None)?;
    let house = house(&image)?;
    house
        .push(
            &format!("{}/app:1", server.name()),
            &image.target,
            &anonymous(),
        )
        .await?;
    let before = server.seen().len();
    house
        .push(
            &format!("{}/app:2", server.name()),
            &image.target,
            &anonymous(),
        )
        .await?;
    let again: Vec<Request> = server.seen().split_off(before);
    assert!(
        again.iter().all(|request| request.method != "POST"),
        "{again:?}"
    );
    Ok(())
}

#[actix_rt::test]
async fn a_blob_of_another_repository_is_mounted() -> Outcome {
    let image = Image::new("amd64", &[1], 10_000);
    let server = taker(true, |_| None)?;
    let house = house(&image)?;
    let layer = &image.layers()[0].0;
    let key = format!("containerd.io/distribution.source.{}", server.name());
    let patch = contracts::LabelPatch {
        replace: false,
        set: Labels::from([(key, "other/app".into())])
            .into_iter()
            .map(|(k, v)| (k, Some(v)))
            .collect(),
    };
    let update = contracts::content::Update {
        digest: layer.digest.clone(),
        labels: patch,
    };
    house.bus().call(&ctx(), update).await?;
    house
        .push(
            &format!("{}/app:1", server.name()),
            &image.target,
            &anonymous(),
        )
        .await?;
    let posts: Vec<String> = server
        .asked("mount=")
        .into_iter()
        .map(|request| request.path)
        .collect();
    assert_eq!(posts.len(), 1, "{posts:?}");
    assert!(posts[0].contains("from=other%2Fapp"), "{posts:?}");
    let sent = server
        .seen()
        .into_iter()
        .filter(|request| request.method == "PUT" && request.path.contains("/upload/"));
    assert_eq!(sent.count(), 1, "only the config");
    Ok(())
}

#[actix_rt::test]
async fn an_upload_that_fails_is_begun_again() -> Outcome {
    let image = Image::new("amd64", &[1], 500_000);
    let failed = AtomicUsize::new(0);
    let server = taker(false, move |request| {
        let upload = request.method == "PUT" && request.path.contains("/upload/");
        (upload && failed.fetch_add(1, Ordering::SeqCst) < 2).then(|| Answer::new(502))
    })?;
    house(&image)?
        .push(
            &format!("{}/app:1", server.name()),
            &image.target,
            &anonymous(),
        )
        .await?;
    let denied = taker(false, |request| {
        (request.method == "POST").then(|| Answer::new(403))
    })?;
    let name = format!("{}/app:1", denied.name());
    let (code, text) = message(
        house(&image)?
            .push(&name, &image.target, &anonymous())
            .await,
    );
    assert_eq!(code, Some(Code::PermissionDenied), "{text}");
    Ok(())
}

#[actix_rt::test]
async fn an_upload_that_goes_to_another_host_takes_no_credentials_along() -> Outcome {
    let image = Image::new("amd64", &[1], 10_000);
    let storage = taker(false, |_| None)?;
    let there = storage.name();
    let server = taker(false, move |request| {
        match (request.header("authorization"), request.method.as_str()) {
            (None, _) => Some(Answer::new(401).header("www-authenticate", "Basic realm=\"x\"")),
            (Some(_), "POST") => {
                Some(Answer::new(202).header("location", format!("http://{there}/upload/2")))
            }
            _ => None,
        }
    })?;
    house(&image)?
        .push(
            &format!("{}/app:1", server.name()),
            &image.target,
            &user("bob", "secret"),
        )
        .await?;
    assert_eq!(storage.seen().len(), 2, "config and layer");
    assert!(
        storage
            .seen()
            .iter()
            .all(|request| request.header("authorization").is_none())
    );
    Ok(())
}

#[actix_rt::test]
async fn a_transfer_that_nobody_waits_for_ends() -> Outcome {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let name = listener.local_addr()?.to_string();
    let (closed, ended) = mpsc::channel();
    std::thread::spawn(move || {
        let Ok((mut stream, _)) = listener.accept() else {
            return;
        };
        let _ = stall(&mut stream);
        let _ = closed.send(());
    });
    let house = House::new()?;
    let target = support::blob(&[7; 1_000_000], support::images::LAYER);
    let fetch = contracts::transfer::Fetch {
        name: contracts::ImageName::new(format!("{name}/app:1"))?,
        r#ref: contracts::Ref::new("layer")?,
        target,
        labels: Labels::new(),
        access: anonymous(),
    };
    let mut items = house.bus().open(&ctx(), fetch).await?;
    let first = futures_util::StreamExt::next(&mut items).await;
    assert!(first.is_some_and(|item| item.is_ok_and(|progress| !progress.done)));
    drop(items);
    let ended =
        tokio::task::spawn_blocking(move || ended.recv_timeout(Duration::from_secs(10))).await?;
    assert!(ended.is_ok(), "the connection stays open");
    Ok(())
}

/// Sends a part and waits until the other side hangs up.
fn stall(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut head = [0; 4096];
    let _ = stream.read(&mut head)?;
    stream.write_all(b"HTTP/1.1 200 x\r\ncontent-length: 1000000\r\n\r\n")?;
    stream.write_all(&[7; 10_000])?;
    while stream.read(&mut head)? > 0 {}
    Ok(())
}
