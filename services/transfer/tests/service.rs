//! The plugin as its callers see it.

mod support;

use contracts::{
    Code,
    plugin::Privileges,
    transfer::{Children, Explain, Plan, Transfer},
};
use support::{House, Outcome, anonymous, ctx, images::Image, message};

#[test]
fn every_method_of_the_contract_has_a_route() {
    assert_eq!(
        transfer::service::routes().missing::<Transfer>(),
        Vec::<&str>::new()
    );
}

#[test]
fn the_plugin_asks_for_no_privilege_and_needs_only_content() {
    let plugin = transfer::plugin();
    assert_eq!(plugin.spec().privileges, Privileges::NONE);
    assert_eq!(plugin.spec().requires, ["content"]);
}

#[actix_rt::test]
async fn a_plan_names_what_is_missing_and_shallow_needs_no_config() -> Outcome {
    let house = House::new()?;
    let image = Image::index(&[
        Image::new("amd64", &[1, 2], 1000),
        Image::new("arm64", &[3], 1000),
    ]);
    let plan = |platform: &str, shallow| Plan {
        target: image.target.clone(),
        platform: platform.into(),
        shallow,
    };
    let (code, text) = message(house.bus().call(&ctx(), plan("linux/amd64", false)).await);
    assert_eq!(code, Some(Code::NotFound));
    assert!(text.contains(image.target.digest.as_str()), "{text}");

    // A pull knows the index first, and asks which manifest to fetch next.
    if let Some((_, index)) = image.parts.last() {
        house.shelf.put(index);
    }
    let chosen = house.bus().call(&ctx(), plan("linux/arm64", true)).await?;
    assert_eq!(chosen.platform.architecture, "arm64");
    assert_eq!((&chosen.config, chosen.layers.len()), (&chosen.manifest, 0));

    let documents = image
        .parts
        .iter()
        .filter(|(part, _)| transfer::manifest::is_document(&part.media_type));
    documents.for_each(|(_, bytes)| drop(house.shelf.put(bytes)));
    let shallow = house.bus().call(&ctx(), plan("linux/amd64", true)).await?;
    assert_eq!(
        (shallow.layers.len(), shallow.config_json.as_str()),
        (2, "")
    );
    assert!(shallow.layers.iter().all(|layer| layer.diff_id.is_none()));
    let (code, text) = message(house.bus().call(&ctx(), plan("linux/amd64", false)).await);
    assert_eq!(code, Some(Code::NotFound));
    assert!(text.contains(shallow.config.digest.as_str()), "{text}");

    image.store(&house.shelf);
    let whole = house
        .bus()
        .call(&ctx(), plan("linux/aarch64", false))
        .await?;
    assert_eq!(
        (whole.layers.len(), whole.platform.architecture.as_str()),
        (1, "arm64")
    );
    assert_eq!(whole.layers[0].diff_id, whole.layers[0].chain_id);
    let (code, text) = message(house.bus().call(&ctx(), plan("linux/s390x", false)).await);
    assert_eq!(code, Some(Code::NotFound));
    assert!(
        text.contains("there are: linux/amd64, linux/arm64"),
        "{text}"
    );

    let children = house
        .bus()
        .call(
            &ctx(),
            Children {
                target: image.target.clone(),
            },
        )
        .await?;
    assert_eq!(children.len(), 2);
    Ok(())
}

#[actix_rt::test]
async fn a_long_config_goes_without_its_history() -> Outcome {
    let house = House::new()?;
    let history = "x".repeat(60_000);
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","history":[{{"comment":"{history}"}}],"rootfs":{{"diff_ids":[]}}}}"#
    );
    let config_blob = support::blob(config.as_bytes(), transfer::manifest::OCI_CONFIG);
    let manifest =
        transfer::manifest::write_manifest(transfer::manifest::OCI_MANIFEST, &config_blob, &[]);
    house.shelf.put(config.as_bytes());
    house.shelf.put(&manifest);
    let target = support::blob(&manifest, transfer::manifest::OCI_MANIFEST);
    let plan = house
        .bus()
        .call(
            &ctx(),
            Plan {
                target,
                platform: String::new(),
                shallow: false,
            },
        )
        .await?;
    assert!(
        plan.config_json.len() < 1000 && plan.config_json.contains("amd64"),
        "{}",
        plan.config_json.len()
    );
    Ok(())
}

#[actix_rt::test]
async fn an_explanation_shows_hosts_rules_and_unused_files() -> Outcome {
    let house = House::new()?;
    house.rules(
        "docker.io",
        "[host.\"https://mirror.example\"]\ncapabilities = [\"pull\"]\n",
    )?;
    std::fs::write(house.folder.path().join("certs.d/docker.io/host.toml"), "")?;
    let shown = house
        .bus()
        .call(
            &ctx(),
            Explain {
                reference: "busybox".into(),
            },
        )
        .await?;
    assert_eq!(shown.name.as_str(), "docker.io/library/busybox:latest");
    assert_eq!(shown.hosts[0].0, "https://mirror.example/v2");
    assert!(
        shown.hosts[0].1.ends_with("docker.io/hosts.toml:1 (pull)"),
        "{:?}",
        shown.hosts
    );
    assert_eq!(shown.hosts[1].0, "https://registry-1.docker.io/v2");
    assert!(
        shown.ignored[0].contains("did you mean hosts.toml?"),
        "{:?}",
        shown.ignored
    );
    Ok(())
}

#[actix_rt::test]
async fn a_wrong_reference_goes_no_further() -> Outcome {
    let house = House::new()?;
    let (code, text) = message(house.resolve("Registry.example/UPPER", &anonymous()).await);
    assert_eq!(code, Some(Code::InvalidArgument));
    assert!(text.contains("must be lowercase"), "{text}");
    house.rules("registry.example", "hots = 1\n")?;
    let (code, text) = message(house.resolve("registry.example/app", &anonymous()).await);
    assert_eq!(code, Some(Code::FailedPrecondition));
    assert!(text.contains("hosts.toml:1: key \"hots\""), "{text}");
    let reference = "registry.example/app".into();
    let shown = house.bus().call(&ctx(), Explain { reference }).await?;
    assert_eq!(shown.name.as_str(), "registry.example/app:latest");
    assert!(shown.ignored[0].contains("hots"), "{:?}", shown.ignored);
    Ok(())
}
