//! Which names there are and what they stand for. See the module page for the table.

use crate::references;
use contracts::collect::{Count, Edge, Edges, Node, Resource};
use contracts::images::{
    Create, Created, Delete, Deleted, Get, Image, List, Put, Tag, Update, Updated,
};
use contracts::{
    Descriptor, Error, ImageName, Labels, Namespace, OperationId, Page, Result, check_labels,
};
use filter::{Fields, Filters};
use ledger::{Ledger, LedgerConfig, Table, Tx, page};
use std::{borrow::Cow, collections::BTreeMap, path::Path};

/// Images of one page of roots: well below one message.
const ROOTS: usize = 500;
/// Longest media type. Source: RFC 6838, section 4.2 (127 characters each side of the slash).
const MAX_MEDIA_TYPE: usize = 255;

const IMAGES: Table<Image> = Table::new("images");

/// The durable state of the plugin. Clones share it.
#[derive(Clone)]
pub(crate) struct Store {
    ledger: Ledger,
}

struct Row<'a>(&'a Image);

impl Fields for Row<'_> {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        match path {
            ["name"] => Some(self.0.name.as_str().into()),
            ["target", "digest"] => Some(self.0.target.digest.as_str().into()),
            ["target", "mediatype" | "media_type"] => {
                Some(self.0.target.media_type.as_str().into())
            }
            ["labels", rest @ ..] => filter::label(&self.0.labels, rest),
            ["annotations", rest @ ..] => filter::label(&self.0.target.annotations, rest),
            _ => None,
        }
    }
}

impl Store {
    pub(crate) fn open(root: &Path) -> Result<Self> {
        Ok(Self {
            ledger: Ledger::open(root.join("images.redb"), LedgerConfig::FIRST)?,
        })
    }

    pub(crate) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    pub(crate) fn get(&self, ns: &Namespace, get: &Get) -> Result<Image> {
        self.ledger.read(|snapshot| {
            snapshot
                .get(&IMAGES, &key(ns, &get.name))?
                .ok_or_else(|| missing(&get.name))
        })
    }

    pub(crate) fn list(&self, ns: &Namespace, list: &List) -> Result<Page<Image>> {
        let filters =
            Filters::parse(&list.paging.filters).map_err(|e| Error::invalid(e.to_string()))?;
        let keep = |_: &str, image: Image| filters.matches(&Row(&image)).then_some(image);
        self.ledger.read(|snapshot| {
            Ok(page(
                snapshot,
                &IMAGES,
                &format!("{ns}\0"),
                &list.paging,
                keep,
            )?)
        })
    }

    pub(crate) async fn create(
        &self,
        ns: &Namespace,
        op: &OperationId,
        create: Create,
    ) -> Result<Image> {
        check(&create.target, &create.labels)?;
        let ns = ns.clone();
        self.ledger
            .write(Some(op), move |tx| {
                match tx.get(&IMAGES, &key(&ns, &create.name))? {
                    Some(_) => Err(taken(&create.name)),
                    None => make(tx, &ns, &create.name, &create.target, &create.labels),
                }
            })
            .await
    }

    pub(crate) async fn put(&self, ns: &Namespace, op: &OperationId, put: Put) -> Result<Image> {
        check(&put.target, &put.labels)?;
        let ns = ns.clone();
        self.ledger
            .write(Some(op), move |tx| {
                let there = tx.get(&IMAGES, &key(&ns, &put.name))?;
                unchanged(&put.name, there.as_ref(), put.version)?;
                match there {
                    None => make(tx, &ns, &put.name, &put.target, &put.labels),
                    Some(mut image) => {
                        image.target = put.target.clone();
                        image.labels = put.labels.clone();
                        change(tx, &ns, image)
                    }
                }
            })
            .await
    }

    pub(crate) async fn update(
        &self,
        ns: &Namespace,
        op: &OperationId,
        update: Update,
    ) -> Result<Image> {
        let ns = ns.clone();
        self.ledger
            .write(Some(op), move |tx| {
                let mut image = present(tx, &ns, &update.name)?;
                unchanged(&update.name, Some(&image), update.version)?;
                update.labels.apply(&mut image.labels)?;
                if let Some(target) = &update.target {
                    check(target, &image.labels)?;
                    image.target = target.clone();
                }
                change(tx, &ns, image)
            })
            .await
    }

    pub(crate) async fn tag(&self, ns: &Namespace, op: &OperationId, tag: Tag) -> Result<Image> {
        let ns = ns.clone();
        self.ledger
            .write(Some(op), move |tx| {
                let source = present(tx, &ns, &tag.source)?;
                match tx.get(&IMAGES, &key(&ns, &tag.name))? {
                    None => make(tx, &ns, &tag.name, &source.target, &source.labels),
                    Some(_) if !tag.force => Err(taken(&tag.name)),
                    Some(image) => change(
                        tx,
                        &ns,
                        Image {
                            target: source.target,
                            labels: source.labels,
                            ..image
                        },
                    ),
                }
            })
            .await
    }

    pub(crate) async fn delete(
        &self,
        ns: &Namespace,
        op: &OperationId,
        delete: Delete,
    ) -> Result<()> {
        let ns = ns.clone();
        self.ledger
            .write(Some(op), move |tx| {
                let image = present(tx, &ns, &delete.name)?;
                unchanged(&delete.name, Some(&image), delete.version)?;
                tx.remove(&IMAGES, &key(&ns, &delete.name))?;
                Ok(tx.emit(
                    Some(&ns),
                    "/images/delete",
                    &Deleted {
                        name: delete.name.clone(),
                    },
                )?)
            })
            .await
    }

    /// Every image as a root.
    pub(crate) fn roots(&self, token: &str) -> Result<Edges> {
        let after = (!token.is_empty()).then_some(token);
        self.ledger.read(|snapshot| {
            let (mut edges, mut last) = (Edges::default(), String::new());
            snapshot.scan(&IMAGES, "", after, |key, image| {
                if edges.items.len() == ROOTS {
                    edges.next = std::mem::take(&mut last);
                    return false;
                }
                key.clone_into(&mut last);
                edges
                    .items
                    .extend(namespace(key).map(|ns| root(&ns, &image)));
                true
            })?;
            Ok(edges)
        })
    }

    /// What some images keep.
    pub(crate) fn references(&self, nodes: &[Node]) -> Result<Vec<Edge>> {
        self.ledger.read(|snapshot| {
            let mut edges = Vec::new();
            for node in nodes {
                if let Resource::Image(name) = &node.resource {
                    let image = snapshot.get(&IMAGES, &key(&node.namespace, name))?;
                    edges.extend(image.iter().flat_map(|image| kept(&node.namespace, image)));
                }
            }
            Ok(edges)
        })
    }

    pub(crate) fn tally(&self, only: Option<&Namespace>) -> Result<Vec<Count>> {
        let mut counts: BTreeMap<String, u64> = BTreeMap::new();
        let prefix = only.map(|ns| format!("{ns}\0")).unwrap_or_default();
        self.ledger.read::<_, Error>(|snapshot| {
            Ok(snapshot.scan(&IMAGES, &prefix, None, |key, _| {
                let namespace = key.split_once('\0').map_or("", |(namespace, _)| namespace);
                *counts.entry(namespace.to_owned()).or_default() += 1;
                true
            })?)
        })?;
        let count = |(namespace, count)| {
            Some(Count {
                namespace: Namespace::new(namespace).ok()?,
                what: "images".into(),
                count,
            })
        };
        Ok(counts.into_iter().filter_map(count).collect())
    }
}

fn key(ns: &Namespace, name: &ImageName) -> String {
    format!("{ns}\0{name}")
}

fn missing(name: &ImageName) -> Error {
    Error::not_found(format!(
        "image {name}: not in this namespace; pull it, or list what is there"
    ))
}

fn taken(name: &ImageName) -> Error {
    Error::exists(format!("image {name}: is there already"))
}

fn present(tx: &Tx<'_>, ns: &Namespace, name: &ImageName) -> Result<Image> {
    tx.get(&IMAGES, &key(ns, name))?
        .ok_or_else(|| missing(name))
}

/// Errors: `Aborted` when the caller saw another version; 0 means that it saw none.
fn unchanged(name: &ImageName, there: Option<&Image>, seen: Option<u64>) -> Result<()> {
    let version = there.map_or(0, |image| image.version);
    match seen {
        Some(seen) if seen != version => Err(Error::aborted(format!(
            "image {name}: has version {version}, not {seen}; read it again"
        ))),
        _ => Ok(()),
    }
}

fn check(target: &Descriptor, labels: &Labels) -> Result<()> {
    check_labels(labels)?;
    if target.media_type.is_empty() || target.media_type.len() > MAX_MEDIA_TYPE {
        return Err(Error::invalid(format!(
            "target media_type {:?}: must have 1 to {MAX_MEDIA_TYPE} bytes",
            target.media_type
        )));
    }
    Ok(())
}

fn make(
    tx: &mut Tx<'_>,
    ns: &Namespace,
    name: &ImageName,
    target: &Descriptor,
    labels: &Labels,
) -> Result<Image> {
    let (name, target, labels) = (name.clone(), target.clone(), labels.clone());
    let image = Image {
        name,
        target,
        labels,
        created_at: tx.now,
        updated_at: tx.now,
        version: 1,
    };
    tx.put(&IMAGES, &key(ns, &image.name), &image)?;
    tx.emit(
        Some(ns),
        "/images/create",
        &Created {
            name: image.name.clone(),
            labels: image.labels.clone(),
            target: image.target.clone(),
            version: image.version,
        },
    )?;
    Ok(image)
}

fn change(tx: &mut Tx<'_>, ns: &Namespace, mut image: Image) -> Result<Image> {
    image.updated_at = tx.now;
    image.version += 1;
    tx.put(&IMAGES, &key(ns, &image.name), &image)?;
    tx.emit(
        Some(ns),
        "/images/update",
        &Updated {
            name: image.name.clone(),
            labels: image.labels.clone(),
            target: image.target.clone(),
            version: image.version,
        },
    )?;
    Ok(image)
}

fn namespace(key: &str) -> Option<Namespace> {
    Namespace::new(key.split_once('\0')?.0).ok()
}

/// An image as a root, and what it keeps.
pub(crate) fn edges(ns: &Namespace, image: &Image) -> Vec<Edge> {
    let own = [root(ns, image)];
    own.into_iter().chain(kept(ns, image)).collect()
}

fn root(ns: &Namespace, image: &Image) -> Edge {
    edge(
        ns,
        image,
        Resource::Image(image.name.clone()),
        "image".into(),
    )
}

/// What an image keeps: its target, and what its labels name.
fn kept(ns: &Namespace, image: &Image) -> Vec<Edge> {
    let target = (
        Resource::Content(image.target.digest.clone()),
        "image".to_owned(),
    );
    let labelled = references::forward(&image.labels)
        .map(|(label, resource)| (resource, format!("label {label}")));
    let all = [target].into_iter().chain(labelled);
    all.map(|(to, reason)| edge(ns, image, to, reason))
        .collect()
}

fn edge(ns: &Namespace, image: &Image, to: Resource, reason: String) -> Edge {
    let node = |resource| Node {
        namespace: ns.clone(),
        resource,
    };
    Edge {
        from: node(Resource::Image(image.name.clone())),
        to: node(to),
        reason,
        flat: false,
    }
}
