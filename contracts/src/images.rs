//! Images: a name, and the descriptor it stands for.

use crate::{Descriptor, ImageName, LabelPatch, Labels, Page, Paging, Timestamp};
use serde::{Deserialize, Serialize};

service! {
    /// Named descriptors. A name is a gc root: what its target refers to stays.
    Images = "images" {
        read get(Get) -> Image;
        read list(List) -> Page<Image>;
        write create(Create) -> Image;
        write put(Put) -> Image;
        write update(Update) -> Image;
        write tag(Tag) -> Image;
        write delete(Delete) -> ();
    } emits {
        "/images/create" => Created;
        "/images/update" => Updated;
        "/images/delete" => Deleted;
    }
}

/// One image record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Full name.
    pub name: ImageName,
    /// What it stands for: a manifest or an index.
    pub target: Descriptor,
    /// Its labels.
    pub labels: Labels,
    /// When the name was made.
    pub created_at: Timestamp,
    /// When target or labels last changed.
    pub updated_at: Timestamp,
    /// Grows with every change of this record; what `If-Match` compares.
    pub version: u64,
}

/// Looks up one image. Errors: `NotFound`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Get {
    /// Full name.
    pub name: ImageName,
}

/// Lists images of the caller's namespace, by name. Filter fields: `name`, `target.digest`, `target.mediatype`, `labels`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct List {
    /// Which part.
    pub paging: Paging,
}

/// Makes a new name. Errors: `AlreadyExists`, `InvalidArgument`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Create {
    /// Full name.
    pub name: ImageName,
    /// What it stands for.
    pub target: Descriptor,
    /// Its labels.
    #[serde(default)]
    pub labels: Labels,
}

/// Makes the name, or points an existing one to `target` and replaces its labels.
///
/// Errors: `Aborted` when `version` is given and differs; `InvalidArgument`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Put {
    /// Full name.
    pub name: ImageName,
    /// What it stands for from now on.
    pub target: Descriptor,
    /// Its labels from now on.
    #[serde(default)]
    pub labels: Labels,
    /// The version the caller saw; 0 for "must not exist".
    #[serde(default)]
    pub version: Option<u64>,
}

/// Changes labels, and the target when given. Errors: `NotFound`; `Aborted` as [`Put`]; `InvalidArgument`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Update {
    /// Full name.
    pub name: ImageName,
    /// New target.
    #[serde(default)]
    pub target: Option<Descriptor>,
    /// The change.
    #[serde(default)]
    pub labels: LabelPatch,
    /// The version the caller saw.
    #[serde(default)]
    pub version: Option<u64>,
}

/// Gives an image a second name. Errors: `NotFound` for `source`; `AlreadyExists` for `name` unless `force`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Tag {
    /// The image that is there.
    pub source: ImageName,
    /// Its additional name.
    pub name: ImageName,
    /// Whether an existing name is moved.
    #[serde(default)]
    pub force: bool,
}

/// Deletes a name; its content stays until collected.
///
/// Errors: `NotFound`; `Aborted` when `version` is given and differs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Delete {
    /// Full name.
    pub name: ImageName,
    /// The version the caller saw.
    #[serde(default)]
    pub version: Option<u64>,
}

/// A name was made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Created {
    /// Full name.
    pub name: ImageName,
    /// Its labels.
    pub labels: Labels,
    /// What it stands for.
    pub target: Descriptor,
    /// As [`Image::version`].
    pub version: u64,
}

/// A name changed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Updated {
    /// Full name.
    pub name: ImageName,
    /// Its labels.
    pub labels: Labels,
    /// What it stands for.
    pub target: Descriptor,
    /// As [`Image::version`].
    pub version: u64,
}

/// A name went away.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Deleted {
    /// Full name.
    pub name: ImageName,
}
