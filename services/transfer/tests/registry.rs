//! Against a real registry: there and back, passwords, TLS, mounts.

mod support;

use contracts::{Code, transfer::Plan};
use support::{House, Outcome, anonymous, ctx, images::Image, message, registry::Registry, user};

#[actix_rt::test]
async fn an_image_that_was_pushed_is_pulled_again_with_its_labels() -> Outcome {
    let registry = Registry::open()?;
    let image = Image::index(&[
        Image::new("amd64", &[1, 2], 300_000),
        Image::new("arm64", &[1, 3], 1000),
    ]);
    let source = House::new()?;
    image.store(&source.shelf);
    let name = format!("{}/team/app:1", registry.name());
    let told = source.push(&name, &image.target, &anonymous()).await?;
    assert_eq!(
        told.last().map(|last| (last.name.as_str(), last.done)),
        Some((name.as_str(), true))
    );

    let house = House::new()?;
    let resolved = house.pull(&name, &anonymous()).await?;
    assert_eq!(resolved.target, image.target);
    assert_eq!(
        (resolved.name.as_str(), resolved.host),
        (name.as_str(), registry.name())
    );
    for (part, bytes) in &image.parts {
        assert_eq!(house.shelf.get(&part.digest).as_ref(), Some(bytes));
        let labels = house.shelf.labels(&part.digest);
        let source = format!("containerd.io/distribution.source.{}", registry.name());
        assert_eq!(labels.get(&source).map(String::as_str), Some("team/app"));
    }
    let index = house.shelf.labels(&image.target.digest);
    assert!(
        index.contains_key("containerd.io/gc.ref.content.m.1"),
        "{index:?}"
    );

    let plan = Plan {
        target: resolved.target,
        platform: "linux/arm64".into(),
        shallow: false,
    };
    let plan = house.bus().call(&ctx(), plan).await?;
    assert_eq!(plan.layers.len(), 2);
    assert!(
        plan.layers.iter().all(|layer| layer.diff_id.is_some())
            && plan.config_json.contains("arm64")
    );
    let labels = house.shelf.labels(&plan.manifest.digest);
    assert_eq!(
        labels.get("containerd.io/gc.ref.content.l.1"),
        Some(&plan.layers[1].blob.digest.to_string())
    );
    Ok(())
}

#[actix_rt::test]
async fn a_second_repository_mounts_instead_of_sending() -> Outcome {
    let registry = Registry::open()?;
    let image = Image::new("amd64", &[7], 200_000);
    let house = House::new()?;
    image.store(&house.shelf);
    house
        .push(
            &format!("{}/one:1", registry.name()),
            &image.target,
            &anonymous(),
        )
        .await?;
    house
        .push(
            &format!("{}/two:1", registry.name()),
            &image.target,
            &anonymous(),
        )
        .await?;
    let other = House::new()?;
    other
        .pull(&format!("{}/two:1", registry.name()), &anonymous())
        .await?;
    assert_eq!(other.shelf.count(), image.parts.len());
    let label = format!("containerd.io/distribution.source.{}", registry.name());
    let labels = house.shelf.labels(&image.layers()[0].0.digest);
    assert_eq!(labels.get(&label).map(String::as_str), Some("one,two"));
    Ok(())
}

#[actix_rt::test]
async fn a_private_registry_wants_the_right_password_and_says_who_was_refused() -> Outcome {
    let registry = Registry::private("bob", "right")?;
    let image = Image::new("amd64", &[1], 1000);
    let house = House::new()?;
    image.store(&house.shelf);
    let name = format!("{}/app:1", registry.name());
    house
        .push(&name, &image.target, &user("bob", "right"))
        .await?;

    let (code, text) = message(house.resolve(&name, &anonymous()).await);
    assert_eq!(code, Some(Code::Unauthenticated));
    assert!(
        text.contains(&registry.name()) && text.contains("none were given"),
        "{text}"
    );
    let (code, text) = message(house.resolve(&name, &user("bob", "wrong-secret")).await);
    assert_eq!(code, Some(Code::Unauthenticated));
    assert!(
        text.contains("refused user \"bob\"") && !text.contains("wrong-secret"),
        "{text}"
    );
    let (code, _) = message(
        house
            .push(&name, &image.target, &user("bob", "wrong"))
            .await,
    );
    assert_eq!(code, Some(Code::Unauthenticated));

    let fresh = House::new()?;
    fresh.pull(&name, &user("bob", "right")).await?;
    assert_eq!(fresh.shelf.count(), image.parts.len());
    Ok(())
}

#[actix_rt::test]
async fn what_is_not_there_is_named() -> Outcome {
    let registry = Registry::open()?;
    let image = Image::new("amd64", &[1], 1000);
    let house = House::new()?;
    image.store(&house.shelf);
    house
        .push(
            &format!("{}/app:1", registry.name()),
            &image.target,
            &anonymous(),
        )
        .await?;
    for missing in ["app:2", "nothing:1"] {
        let (code, text) = message(
            house
                .resolve(&format!("{}/{missing}", registry.name()), &anonymous())
                .await,
        );
        let (repository, tag) = missing.split_once(':').unwrap_or_default();
        assert_eq!(code, Some(Code::NotFound), "{text}");
        assert!(
            text.contains(&registry.name())
                && text.contains(repository)
                && text.contains(&format!("{tag:?}")),
            "{text}"
        );
    }
    Ok(())
}

#[actix_rt::test]
async fn a_name_with_a_digest_gets_that_image_whatever_the_tag_says() -> Outcome {
    let registry = Registry::open()?;
    let (old, new) = (
        Image::new("amd64", &[1], 1000),
        Image::new("amd64", &[2], 1000),
    );
    let house = House::new()?;
    old.store(&house.shelf);
    new.store(&house.shelf);
    let name = format!("{}/app:1", registry.name());
    house.push(&name, &old.target, &anonymous()).await?;
    house.push(&name, &new.target, &anonymous()).await?;
    let by_tag = house.resolve(&name, &anonymous()).await?;
    assert_eq!(by_tag.target.digest, new.target.digest);
    let by_digest = house
        .resolve(&format!("{name}@{}", old.target.digest), &anonymous())
        .await?;
    assert_eq!(by_digest.target.digest, old.target.digest);
    Ok(())
}

#[actix_rt::test]
async fn tls_with_an_own_authority_works_by_rule_and_is_refused_without() -> Outcome {
    let registry = Registry::tls()?;
    let image = Image::new("amd64", &[1], 100_000);
    let house = House::new()?;
    image.store(&house.shelf);
    let name = format!("{}/app:1", registry.name());
    let ca = registry.folder.path().join("ca.pem");
    let server = format!("server = \"https://{}\"\n", registry.name());

    house.rules(&registry.name(), &server)?;
    let (code, text) = message(house.resolve(&name, &anonymous()).await);
    assert_eq!(code, Some(Code::Unavailable));
    assert!(
        text.contains("add its authority as ca in hosts.toml"),
        "{text}"
    );

    house.rules(&registry.name(), &format!("{server}ca = {ca:?}\n"))?;
    house.push(&name, &image.target, &anonymous()).await?;
    let fresh = House::new()?;
    fresh.rules(&registry.name(), &format!("{server}skip_verify = true\n"))?;
    fresh.pull(&name, &anonymous()).await?;
    assert_eq!(fresh.shelf.count(), image.parts.len());

    // Asked in the clear, and the other way round, the message says what is wrong.
    let (_, text) = message(House::new()?.resolve(&name, &anonymous()).await);
    assert!(text.contains("it speaks https"), "{text}");
    let plain = Registry::open()?;
    house.rules(
        &plain.name(),
        &format!("server = \"https://{}\"\n", plain.name()),
    )?;
    let (_, text) = message(
        house
            .resolve(&format!("{}/app:1", plain.name()), &anonymous())
            .await,
    );
    assert!(text.contains("plain_http"), "{text}");
    Ok(())
}

#[actix_rt::test]
async fn an_index_of_which_one_platform_is_here_is_pushed_as_that_platform() -> Outcome {
    let registry = Registry::open()?;
    let here = Image::new("amd64", &[1], 1000);
    let index = Image::index(&[here.clone(), Image::new("arm64", &[2], 1000)]);
    let house = House::new()?;
    here.store(&house.shelf);
    if let Some((_, bytes)) = index.parts.last() {
        house.shelf.put(bytes);
    }
    let name = format!("{}/app:1", registry.name());
    house.push(&name, &index.target, &anonymous()).await?;
    assert_eq!(
        house.resolve(&name, &anonymous()).await?.target.digest,
        here.target.digest
    );
    Ok(())
}

#[actix_rt::test]
async fn an_image_whose_blobs_are_damaged_is_whole_after_it_was_pulled_again() -> Outcome {
    let registry = Registry::open()?;
    let image = Image::index(&[
        Image::new("amd64", &[1, 2], 300_000),
        Image::new("arm64", &[1, 3], 1000),
    ]);
    let source = House::new()?;
    image.store(&source.shelf);
    let name = format!("{}/team/app:1", registry.name());
    source.push(&name, &image.target, &anonymous()).await?;

    let house = House::new()?;
    house.pull(&name, &anonymous()).await?;
    for (part, _) in &image.parts {
        house.shelf.damage(&part.digest);
    }
    let plan = Plan {
        target: image.target.clone(),
        platform: "linux/amd64".into(),
        shallow: false,
    };
    let (code, _) = message(house.bus().call(&ctx(), plan.clone()).await);
    assert_eq!(code, Some(Code::DataLoss));
    house.pull(&name, &anonymous()).await?;
    house.bus().call(&ctx(), plan).await?;
    Ok(())
}
