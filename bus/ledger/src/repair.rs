//! A file that is looked at while its owner does not run, and a new one in its place.
//!
//! ```text
//! <name>.redb.new              the new file in the making; an old one is in nobody's way
//! <name>.redb.damaged-<time>   what was there before, for people: it is never read again
//! ```
//!
//! The new file has the old one's epoch, so that the log goes on where it was, when the outbox and its numbers are
//! whole and no commit is lost. Otherwise it begins a new life: the log then takes its events for those of another
//! outbox, and may see again some that it has.

use crate::file::{create, keeps_to, lost};
use crate::mark::{self, Life, Mark, Marker, Progress, options, own, with_suffix};
use crate::salvage::{Salvaged, salvage};
use crate::seal::{OPEN, seal, unseal};
use crate::table::{META, OUTBOX, Snapshot, fault, outbox_key};
use crate::{Fault, LedgerConfig, format};
use contracts::Timestamp;
use contracts::integrity::{Cure, Damage, Finding, Mended};
use redb::{Database, TableDefinition};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Most single damages that one file is reported with.
const MOST: usize = 100;

/// What a look at a file told.
enum Look {
    /// There is no file, and there never was.
    None,
    Sound,
    /// What is wrong with it.
    Damaged(String),
}

/// Looks at a file and changes nothing; rebuilds it when it is damaged and `repair` says so.
///
/// Errors: `InUse`, `Full`, `Short`, `Io`.
pub(crate) fn fsck(path: &Path, repair: bool) -> Result<crate::integrity::Found, Fault> {
    let Look::Damaged(what) = look(path)? else {
        return Ok(Vec::new());
    };
    let mut bytes = Vec::new();
    let opened = options().read(true).open(path);
    match opened.and_then(|mut file| file.read_to_end(&mut bytes)) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Fault::io(path, &e)),
        _ => {}
    }
    let mark = mark::read(path)?;
    let salvaged = salvage(&bytes, mark.as_ref());
    let mark = mark.filter(|_| !salvaged.foreign);
    let mended = if repair {
        Some(rebuild(path, &salvaged, mark.as_ref())?)
    } else {
        None
    };
    let parts = salvaged.damages.iter().take(MOST);
    let parts = parts.map(|damage| finding(path, Damage::Record, damage));
    let whole = finding(path, Damage::Store, &what);
    let told = |finding| (finding, mended.clone());
    Ok(std::iter::once(whole).chain(parts).map(told).collect())
}

fn finding(path: &Path, damage: Damage, what: &str) -> Finding {
    let name = path.file_name().unwrap_or_default();
    Finding {
        damage,
        namespace: None,
        subject: name.to_string_lossy().into_owned(),
        what: what.into(),
        cure: Cure::Rebuild,
    }
}

/// Opens the file as its owner would, reads every record, and leaves everything as it was.
fn look(path: &Path) -> Result<Look, Fault> {
    let mark = mark::read(path)?;
    if !path.exists() {
        return Ok(match mark {
            Some(mark) => said(lost(path, &mark, None))?,
            None => Look::None,
        });
    }
    if format::is_unborn(path)? {
        return Ok(Look::None);
    }
    match read(path, mark.as_ref()) {
        Ok(()) => Ok(Look::Sound),
        Err(fault) => said(fault),
    }
}

fn said(fault: Fault) -> Result<Look, Fault> {
    match fault {
        Fault::Damaged(_, what) => Ok(Look::Damaged(what)),
        fault => Err(fault),
    }
}

fn read(path: &Path, mark: Option<&Mark>) -> Result<(), Fault> {
    let opened = create(path, LedgerConfig::FIRST.cache, false)?;
    let born = format::look(&opened.database, path)?;
    if let Some(mark) = mark
        && !keeps_to(born.as_ref(), mark)
    {
        return Err(lost(path, mark, born.as_ref()));
    }
    let Some(born) = born else {
        return Ok(());
    };
    let snapshot = Snapshot::of(&opened.database, &path.into(), born.life.seed)?;
    for table in snapshot.tables()? {
        let mut wrong = None;
        snapshot.raw(&table, None, &mut |key, value| {
            let sealed = unseal(born.life.seed, key, value);
            let whole = born.format < format::FORMAT || sealed.is_some_and(|s| s.table == table);
            if !whole {
                wrong = Some(format!("record {table}/{key:?}: its checksum is wrong"));
            }
            whole
        })?;
        if let Some(what) = wrong {
            return Err(Fault::Damaged(path.to_owned(), what));
        }
    }
    Ok(())
}

/// Puts a new file with all that was salvaged in place of the damaged one, which is set aside.
fn rebuild(path: &Path, salvaged: &Salvaged, mark: Option<&Mark>) -> Result<Mended, Fault> {
    let now = Timestamp::now();
    let new = with_suffix(path, ".new");
    let io = |e: std::io::Error| Fault::io(path, &e);
    let _ = std::fs::remove_file(&new);
    let after = Next::after(salvaged, mark, now);
    let records = match write(&new, salvaged, &after) {
        Ok(records) => records,
        Err(fault) => {
            let _ = std::fs::remove_file(&new);
            return Err(fault);
        }
    };
    let folder = path.parent().unwrap_or(Path::new("/"));
    let file = options().read(true).open(&new).map_err(io)?;
    own(&file, folder).map_err(io)?;
    file.sync_all().map_err(io)?;
    let seconds = now.0 / 1_000_000_000;
    let aside = with_suffix(path, &format!(".damaged-{seconds}"));
    let kept = path.exists();
    if kept {
        let _ = std::fs::remove_file(&aside);
        std::fs::hard_link(path, &aside).map_err(io)?;
    }
    // The mark comes first: until the new file is there too, neither is taken for the other.
    Marker::create(path, &after.mark)?;
    std::fs::rename(&new, path).map_err(io)?;
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(io)?;
    let aside = aside.file_name().unwrap_or_default().to_string_lossy();
    Ok(Mended {
        how: how(salvaged, &after, records, kept.then_some(&aside)),
    })
}

fn how(salvaged: &Salvaged, after: &Next, records: usize, aside: Option<&str>) -> String {
    let mut how = match records {
        0 => "made anew and empty: what it held is lost".to_owned(),
        _ => format!("rebuilt with {records} records"),
    };
    if salvaged.loose > 0 {
        let loose = salvaged.loose;
        how +=
            &format!(", {loose} of them found outside of any tree: removed ones may be among them");
    }
    for (table, count) in &salvaged.missing {
        how += &format!(", {count} of table {table} are lost");
    }
    if after.anew {
        how += ", its events begin a new outbox";
    }
    if let Some(aside) = aside {
        how += &format!("; what was there is kept as {aside}");
    }
    how
}

/// The numbers of the new file.
struct Next {
    mark: Mark,
    /// The next number of its outbox.
    outbox: u64,
    /// Whether it is another life than that of the damaged file.
    anew: bool,
}

impl Next {
    fn after(salvaged: &Salvaged, mark: Option<&Mark>, now: Timestamp) -> Self {
        let number = |key: &str| {
            let stored = salvaged.records.get(&(META.name().into(), key.into()))?;
            let record = if salvaged.sealed {
                unseal(OPEN, key, &stored.value)?.record
            } else {
                &stored.value
            };
            codec::decode::<u64>(record).ok()
        };
        let reached = mark.map(|mark| mark.progress).unwrap_or_default();
        let ours = |table: &str| table == META.name() || table == OUTBOX.name();
        let epoch = mark.map(|mark| mark.life.epoch).or(number("epoch"));
        let whole = salvaged.version >= reached.commit
            && salvaged.version > 0
            && !salvaged.hurt.iter().any(|table| ours(table));
        let kept = epoch.filter(|_| whole);
        let newest = salvaged.records.values().map(|stored| stored.commit).max();
        let commit = newest
            .unwrap_or(0)
            .max(reached.commit)
            .max(salvaged.version)
            + 1;
        let rows = salvaged.records.keys().rev();
        let mut rows = rows.filter(|(table, _)| table == OUTBOX.name());
        let last = rows.next().and_then(|(_, key)| key.parse::<u64>().ok());
        let last = last.unwrap_or(0).max(reached.delivered);
        let life = Life {
            epoch: kept.unwrap_or(now.0.unsigned_abs()),
            seed: if salvaged.seed == OPEN {
                format::random()
            } else {
                salvaged.seed
            },
            schema: number("schema")
                .or(mark.map(|m| m.life.schema))
                .unwrap_or(1),
        };
        let delivered = reached.delivered;
        Self {
            mark: Mark {
                life,
                progress: Progress { commit, delivered },
            },
            outbox: number("outbox").unwrap_or(1).max(last + 1),
            anew: kept.is_none(),
        }
    }
}

/// Writes the new file; answers how many records of the store it has.
fn write(new: &Path, salvaged: &Salvaged, next: &Next) -> Result<usize, Fault> {
    let opened = create(new, LedgerConfig::FIRST.cache, false)?;
    let released = opened.device.release();
    released.map_err(|e| Fault::io(new, &e))?;
    store(&opened.database, new, salvaged, next)
}

fn store(db: &Database, new: &Path, salvaged: &Salvaged, next: &Next) -> Result<usize, Fault> {
    let transaction = db.begin_write().map_err(|e| fault(new, e))?;
    let (life, progress) = (next.mark.life, next.mark.progress);
    let put = |table: &str, key: &str, value: &[u8]| -> Result<(), Fault> {
        let definition = TableDefinition::<&str, &[u8]>::new(table);
        let mut table = transaction
            .open_table(definition)
            .map_err(|e| fault(new, e))?;
        table.insert(key, value).map_err(|e| fault(new, e))?;
        Ok(())
    };
    let delivered = outbox_key(progress.delivered);
    let mut records = 0;
    for ((table, key), stored) in &salvaged.records {
        let told = table == OUTBOX.name() && *key <= delivered;
        if table == META.name() || told {
            continue;
        }
        records += usize::from(!table.starts_with('_'));
        if salvaged.sealed && life.seed == salvaged.seed {
            put(table, key, &stored.value)?;
        } else {
            let value = seal(life.seed, table, key, stored.commit, &stored.value);
            put(table, key, &value)?;
        }
    }
    let numbers = [
        ("format", format::FORMAT),
        ("schema", life.schema),
        ("epoch", life.epoch),
        ("seed", life.seed),
        ("version", progress.commit),
        ("outbox", next.outbox),
    ];
    for (key, number) in numbers {
        let number = codec::encode(&number);
        let number = number.map_err(|e| Fault::TooLarge(key.into(), e.to_string()))?;
        let value = seal(OPEN, META.name(), key, progress.commit, &number);
        put(META.name(), key, &value)?;
    }
    transaction.commit().map_err(|e| fault(new, e))?;
    Ok(records)
}
