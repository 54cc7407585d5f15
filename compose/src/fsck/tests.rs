use super::*;

fn fsck(root: Option<&str>, state: Option<&str>, host: Option<&str>) -> Fsck {
    Fsck {
        repair: false,
        deep: false,
        root: root.map(PathBuf::from),
        state: state.map(PathBuf::from),
        host: host.map(String::from),
        output: Output::Text,
    }
}

fn places(fsck: &Fsck, environment: Option<&str>) -> (String, String) {
    let (state, socket) = fsck.places(environment.map(String::from));
    (state.display().to_string(), socket.display().to_string())
}

#[test]
fn the_node_of_the_environment_is_looked_at_as_by_every_other_command() {
    let there = ("/n/state".into(), "/n/state/gantry.sock".into());
    let host = "unix:///n/state/gantry.sock";
    assert_eq!(places(&fsck(None, None, None), Some(host)), there);
    assert_eq!(places(&fsck(None, None, Some(host)), None), there);
    assert_eq!(places(&fsck(None, Some("/n/state"), None), None), there);
}

#[test]
fn folders_that_are_named_count_more_than_the_environment() {
    let other = Some("/other/gantry.sock");
    let usual = ("/run/gantry".into(), "/run/gantry/gantry.sock".into());
    assert_eq!(places(&fsck(Some("/n/root"), None, None), other), usual);
    assert_eq!(places(&fsck(None, None, None), None), usual);
}

#[test]
fn a_folder_of_no_node_is_not_called_whole() {
    let nowhere = fsck(Some("/nowhere/gantry"), None, None);
    let error = nowhere.folder(Path::new(STATE)).expect_err("it is none");
    assert!(error.contains("/nowhere/gantry") && error.contains("--root"));
}

#[test]
fn a_stopped_node_of_another_state_folder_is_not_guessed() {
    let error = fsck(None, Some("/n/state"), None).folder(Path::new("/n/state"));
    let error = error.expect_err("nobody said where it keeps its data");
    assert!(error.contains("/n/state") && error.contains("--root"));
}
