//! A disk that is full: what cannot be done is refused by name, what runs goes on, and nothing is left when there is room.

mod support;

use contracts::Code;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::fs::File;
use std::io::Write;
use std::path::Path;
use support::*;

/// Makes a folder a small disk of its own.
fn small(folder: &Path) {
    let size = Some("size=512k");
    mount(Some("none"), folder, Some("tmpfs"), MsFlags::empty(), size).unwrap();
}

fn fill(folder: &Path) {
    let mut file = File::create(folder.join("filler")).unwrap();
    while file.write_all(&[7; 4096]).is_ok() {}
    while file.write_all(b"7").is_ok() {}
}

#[actix_rt::test]
async fn a_full_state_folder_refuses_a_task_and_keeps_nothing_of_it() {
    let home = Home::start_after(async |_, state, _| small(state)).await;
    home.run("runs", &["sleep", "1000"]).await;
    fill(&home.state());
    home.container("box", &["sleep", "1000"]);
    let refused = home.create("box").await.unwrap_err();
    assert!(refused.is(Code::ResourceExhausted), "{refused:?}");
    assert!(refused.message.contains("No space left"), "{refused}");
    assert!(home.get("box").await.unwrap_err().is(Code::NotFound));
    assert!(home.get("runs").await.unwrap().pid > 0);
    home.delete("runs", true).await.unwrap();
    std::fs::remove_file(home.state().join("filler")).unwrap();
    home.create("box").await.unwrap();
    home.go("box").await.unwrap();
    home.delete("box", true).await.unwrap();
    let bundles = home.state().join("bundles");
    until("bundles are gone", || {
        std::fs::read_dir(&bundles).map_or(true, |mut left| left.next().is_none())
    })
    .await;
    umount2(&home.state(), MntFlags::MNT_DETACH).unwrap();
    home.gone().await;
}

#[actix_rt::test]
async fn a_full_disk_of_logs_stops_no_container() {
    let home = Home::start_after(async |root, _, _| {
        std::fs::create_dir_all(root.join("logs")).unwrap();
        small(&root.join("logs"));
    })
    .await;
    let logs_folder = home.folder.path().join("root/tasks/local/logs");
    let script =
        "echo before; read x < /tmp/go; seq 1 20000; echo after; read x < /tmp/go; echo end";
    home.container_with(
        "box",
        &["sh", "-c", &format!("mkfifo /tmp/go; {script}")],
        "",
        |_| {},
    );
    home.create("box").await.unwrap();
    home.go("box").await.unwrap();
    home.until_out("box", "before\n").await;
    fill(&logs_folder);
    assert_eq!(
        home.execute("box", "more", &["sh", "-c", "echo > /tmp/go"])
            .await
            .0,
        0
    );
    // It has written all of it, and waits again: the fifo has a reader.
    assert_eq!(
        home.execute("box", "wait", &["sh", "-c", "echo > /tmp/go; true"])
            .await
            .0,
        0
    );
    assert_eq!(home.wait("box").await.unwrap().exit_code, 0);
    std::fs::remove_file(logs_folder.join("filler")).unwrap();
    home.delete("box", false).await.unwrap();
    umount2(&logs_folder, MntFlags::MNT_DETACH).unwrap();
    home.gone().await;
}
