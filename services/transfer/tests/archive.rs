//! Archives in and out: OCI layouts, docker archives, and hostile ones.

mod support;

use contracts::{
    Code, Fd, ImageName, Result,
    transfer::{Export, Import, Imported, Plan},
};
use std::{
    collections::BTreeMap,
    io::{Read, Seek, Write},
    os::fd::OwnedFd,
};
use support::{
    House, Outcome, collect, ctx, digest,
    images::{Image, gzip, noise, tar},
    message,
};

fn file(bytes: &[u8]) -> std::io::Result<Fd> {
    let mut file = tempfile::tempfile()?;
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(OwnedFd::from(file).into())
}

async fn import(house: &House, archive: Fd, prefix: &str) -> Result<Imported> {
    let told = collect(
        &house.bus(),
        Import {
            archive,
            prefix: prefix.into(),
        },
    )
    .await?;
    told.into_iter()
        .last()
        .ok_or_else(|| contracts::Error::internal("nothing was told"))
}

async fn export(
    house: &House,
    images: &[(&str, &Image)],
    platform: &str,
) -> std::result::Result<Vec<u8>, Box<dyn std::error::Error>> {
    let target = tempfile::tempfile()?;
    let mut read = target.try_clone()?;
    let images = images
        .iter()
        .map(|(name, image)| Ok((ImageName::new(*name)?, image.target.clone())))
        .collect::<Result<_>>()?;
    let request = Export {
        images,
        platform: platform.into(),
        archive: OwnedFd::from(target).into(),
    };
    let told = collect(&house.bus(), request).await?;
    assert!(told.last().is_some_and(|last| last.done));
    let mut bytes = Vec::new();
    read.rewind()?;
    read.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A tar of these files; a text that begins with `->` makes a symlink.
fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        let target = std::str::from_utf8(bytes)
            .ok()
            .and_then(|text| text.strip_prefix("->"));
        let written = match target {
            Some(target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_size(0);
                builder.append_link(&mut header, name, target)
            }
            None => {
                header.set_size(bytes.len() as u64);
                builder.append_data(&mut header, name, *bytes)
            }
        };
        assert!(written.is_ok());
    }
    builder.into_inner().unwrap_or_default()
}

fn names(bytes: &[u8]) -> std::io::Result<Vec<String>> {
    let mut archive = tar::Archive::new(bytes);
    archive
        .entries()?
        .map(|entry| Ok(entry?.path()?.display().to_string()))
        .collect()
}

#[actix_rt::test]
async fn what_is_exported_can_be_imported_and_equal_images_give_equal_bytes() -> Outcome {
    let image = Image::index(&[
        Image::new("amd64", &[1, 2], 300_000),
        Image::new("arm64", &[3], 1000),
    ]);
    let house = House::new()?;
    image.store(&house.shelf);
    let name = "registry.example/team/app:1";
    let bytes = export(&house, &[(name, &image)], "").await?;
    assert_eq!(bytes, export(&house, &[(name, &image)], "").await?);
    let listed = names(&bytes)?;
    assert!(listed.is_sorted(), "{listed:?}");
    for wanted in ["oci-layout", "index.json", "manifest.json"] {
        assert!(listed.iter().any(|name| name == wanted), "{listed:?}");
    }

    for archive in [
        bytes.clone(),
        gzip(&bytes),
        zstd::encode_all(&bytes[..], 1)?,
    ] {
        let fresh = House::new()?;
        let imported = import(&fresh, file(&archive)?, "").await?;
        assert_eq!(imported.images.len(), 1);
        assert_eq!(
            (imported.images[0].0.as_str(), &imported.images[0].1.digest),
            (name, &image.target.digest)
        );
        assert_eq!(imported.offset, archive.len() as u64);
        assert_eq!(fresh.shelf.count(), image.parts.len());
        let labels = fresh.shelf.labels(&image.target.digest);
        assert!(
            labels.contains_key("containerd.io/gc.ref.content.m.1"),
            "{labels:?}"
        );
        let plan = Plan {
            target: image.target.clone(),
            platform: "linux/amd64".into(),
            shallow: false,
        };
        assert_eq!(fresh.bus().call(&ctx(), plan).await?.layers.len(), 2);
    }
    Ok(())
}

#[actix_rt::test]
async fn an_export_of_one_platform_holds_that_platform_only() -> Outcome {
    let arm = Image::new("arm64", &[3], 1000);
    let image = Image::index(&[Image::new("amd64", &[1, 2], 1000), arm.clone()]);
    let house = House::new()?;
    image.store(&house.shelf);
    let bytes = export(&house, &[("registry.example/app:1", &image)], "linux/arm64").await?;
    let fresh = House::new()?;
    let imported = import(&fresh, file(&bytes)?, "").await?;
    assert_eq!(imported.images[0].1.digest, arm.target.digest);
    assert_eq!(fresh.shelf.count(), arm.parts.len());
    Ok(())
}

#[actix_rt::test]
async fn an_export_whose_reader_has_gone_is_cancelled_and_a_missing_blob_is_named() -> Outcome {
    let image = Image::new("amd64", &[1], 2_000_000);
    let house = House::new()?;
    image.store(&house.shelf);
    let (reader, writer) = std::io::pipe()?;
    drop(reader);
    let images = vec![(
        ImageName::new("registry.example/app:1")?,
        image.target.clone(),
    )];
    let request = Export {
        images: images.clone(),
        platform: String::new(),
        archive: OwnedFd::from(writer).into(),
    };
    let (code, _) = message(collect(&house.bus(), request).await);
    assert_eq!(code, Some(Code::Cancelled));

    let partial = House::new()?;
    image
        .parts
        .iter()
        .filter(|(part, _)| part.media_type != support::images::LAYER)
        .for_each(|(_, bytes)| drop(partial.shelf.put(bytes)));
    let request = Export {
        images,
        platform: String::new(),
        archive: file(b"")?,
    };
    let (code, text) = message(collect(&partial.bus(), request).await);
    assert_eq!(code, Some(Code::NotFound));
    assert!(text.contains(image.layers()[0].0.digest.as_str()), "{text}");
    Ok(())
}

/// Two images of an old docker archive which share a layer by a symlink.
fn saved() -> (Vec<u8>, Vec<u8>) {
    let layer = tar("file", &noise(1, 50_000));
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","rootfs":{{"diff_ids":["{}"]}}}}"#,
        digest(&layer)
    );
    let manifest = r#"[{"Config":"c1.json","RepoTags":["app:1","other.example/app:2"],"Layers":["a/layer.tar"]},
        {"Config":"c2.json","RepoTags":null,"Layers":["b/layer.tar"]}]"#;
    let second = config.replace("linux\"", "linux\",\"author\":\"x\"");
    let bytes = archive(&[
        ("b/layer.tar", b"->../a/layer.tar"),
        ("a/VERSION", b"1.0"),
        ("a/json", b"{}"),
        ("a/layer.tar", &layer),
        ("c1.json", config.as_bytes()),
        ("c2.json", second.as_bytes()),
        ("manifest.json", manifest.as_bytes()),
        ("repositories", b"{}"),
    ]);
    (bytes, layer)
}

#[actix_rt::test]
async fn a_docker_archive_with_linked_layers_is_imported() -> Outcome {
    let (bytes, layer) = saved();
    let house = House::new()?;
    let imported = import(&house, file(&bytes)?, "").await?;
    let found: BTreeMap<&str, _> = imported
        .images
        .iter()
        .map(|(name, target)| (name.as_str(), target))
        .collect();
    assert_eq!(
        found.keys().copied().collect::<Vec<_>>(),
        ["", "docker.io/library/app:1", "other.example/app:2"]
    );
    assert_eq!(
        house.shelf.count(),
        5,
        "a layer, two configs, two manifests"
    );
    for target in found.values() {
        let plan = Plan {
            target: (*target).clone(),
            platform: "linux/amd64".into(),
            shallow: false,
        };
        let plan = house.bus().call(&ctx(), plan).await?;
        assert_eq!(
            (&plan.layers[0].blob.digest, &plan.layers[0].diff_id),
            (&digest(&layer), &Some(digest(&layer)))
        );
        let labels = house.shelf.labels(&target.digest);
        assert_eq!(
            labels.get("containerd.io/gc.ref.content.l.0"),
            Some(&digest(&layer).to_string())
        );
    }
    // The same again finds everything there.
    let again = import(&house, file(&bytes)?, "").await?;
    assert_eq!(again.images, imported.images);
    assert_eq!(house.shelf.count(), 5);
    Ok(())
}

#[actix_rt::test]
async fn a_tag_in_an_index_needs_the_prefix_to_be_a_name() -> Outcome {
    let image = Image::new("amd64", &[1], 100);
    let entry = |annotation: &str| {
        let t = &image.target;
        format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{}","digest":"{}","size":{},"annotations":{{{annotation}}}}}]}}"#,
            t.media_type, t.digest, t.size
        )
    };
    let cases = [
        (r#""org.opencontainers.image.ref.name":"1.0""#, "", ""),
        (
            r#""org.opencontainers.image.ref.name":"1.0""#,
            "registry.example/app",
            "registry.example/app:1.0",
        ),
        (
            r#""org.opencontainers.image.ref.name":"docker.io/library/app:2""#,
            "x.example/y",
            "docker.io/library/app:2",
        ),
        (
            r#""io.containerd.image.name":"app:3","org.opencontainers.image.ref.name":"3""#,
            "",
            "docker.io/library/app:3",
        ),
    ];
    for (annotation, prefix, expected) in cases {
        let index = entry(annotation);
        let paths: Vec<String> = image
            .parts
            .iter()
            .map(|(part, _)| format!("blobs/sha256/{}", part.digest.hex()))
            .collect();
        let mut files: Vec<(&str, &[u8])> = vec![("index.json", index.as_bytes())];
        files.extend(
            paths
                .iter()
                .zip(&image.parts)
                .map(|(path, (_, bytes))| (path.as_str(), bytes.as_slice())),
        );
        let imported = import(&House::new()?, file(&archive(&files))?, prefix).await?;
        assert_eq!(imported.images[0].0, expected);
    }
    Ok(())
}

#[actix_rt::test]
async fn a_faulty_archive_is_refused_by_name_and_leaves_no_ingest() -> Outcome {
    let (good, layer) = saved();
    let named = format!("blobs/sha256/{}", digest(b"something else").hex());
    let manifest = br#"[{"Config":"c.json","Layers":["missing/layer.tar"]}]"#;
    let config = format!(r#"{{"rootfs":{{"diff_ids":["{}"]}}}}"#, digest(&layer));
    let other = format!(r#"{{"rootfs":{{"diff_ids":["{}"]}}}}"#, digest(b"other"));
    let layers = br#"[{"Config":"c.json","Layers":["l.tar"]}]"#;
    let cases: [(Vec<u8>, Code, &str); 8] = [
        (
            archive(&[("a", b"x")]),
            Code::InvalidArgument,
            "neither index.json nor manifest.json",
        ),
        (archive(&[(&named, b"wrong")]), Code::DataLoss, &named),
        (
            archive(&[("blobs/sha256/12", b"x")]),
            Code::InvalidArgument,
            "blobs/sha256/12",
        ),
        (
            archive(&[("c.json", config.as_bytes()), ("manifest.json", manifest)]),
            Code::InvalidArgument,
            "missing/layer.tar",
        ),
        (
            archive(&[
                ("c.json", other.as_bytes()),
                ("l.tar", &layer),
                ("manifest.json", layers),
            ]),
            Code::DataLoss,
            "l.tar",
        ),
        (good[..20_000].to_vec(), Code::InvalidArgument, "cut off"),
        (
            gzip(&good)[..20_000].to_vec(),
            Code::InvalidArgument,
            "archive",
        ),
        (
            archive(&[("oci-layout", br#"{"imageLayoutVersion":"9"}"#)]),
            Code::Unimplemented,
            "version \"9\"",
        ),
    ];
    for (bytes, expected, part) in cases {
        let house = House::new()?;
        let (code, text) = message(import(&house, file(&bytes)?, "").await);
        assert_eq!(code, Some(expected), "{text}");
        assert!(text.contains(part), "{text:?}, expected {part:?}");
        assert_eq!(house.shelf.ingests(), 0, "{text}");
    }
    Ok(())
}

#[actix_rt::test]
async fn an_archive_past_the_limit_is_refused_before_it_is_stored() -> Outcome {
    // 60 MB of zeros are 60 kB of gzip, and more than this house's limit.
    let mut header = tar::Header::new_gnu();
    header.set_size(60_000_000);
    header.set_path("huge")?;
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.resize(60_000_000, 0);
    let house = House::new()?;
    let (code, text) = message(import(&house, file(&gzip(&bytes))?, "").await);
    assert_eq!(code, Some(Code::ResourceExhausted));
    assert!(
        text.contains("\"huge\"") && text.contains("max_import_bytes"),
        "{text}"
    );
    assert_eq!((house.shelf.count(), house.shelf.ingests()), (0, 0));
    // A file with a hole of 100 GB is no archive, however long it is.
    let sparse = tempfile::tempfile()?;
    sparse.set_len(100 << 30)?;
    let (code, _) = message(import(&house, OwnedFd::from(sparse).into(), "").await);
    assert_eq!(code, Some(Code::InvalidArgument));
    Ok(())
}

#[actix_rt::test]
async fn a_full_disk_ends_an_import_with_its_cause() -> Outcome {
    let (bytes, _) = saved();
    let house = House::new()?;
    house.shelf.fill();
    let (code, _) = message(import(&house, file(&bytes)?, "").await);
    assert_eq!(code, Some(Code::ResourceExhausted));
    let house = House::new()?;
    house.shelf.fill_meanwhile();
    let (code, _) = message(import(&house, file(&bytes)?, "").await);
    assert_eq!(code, Some(Code::ResourceExhausted));
    assert_eq!(house.shelf.ingests(), 0);
    Ok(())
}
