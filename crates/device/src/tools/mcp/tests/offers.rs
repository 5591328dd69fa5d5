//! What a device says it can do, where a server of the owner's stands in for tools of its own.

use super::*;
use crate::info::Offers;
use crate::tools::{Exec, ToolSettings, Toolbox};

/// A device whose `BashExecutor` and `Files` are servers with these manners.
fn toolbox(manners: &str, disabled: &str, cwd: &Path) -> Toolbox {
    let server = |name| {
        let cwd = cwd.join(name);
        std::fs::create_dir_all(&cwd).unwrap();
        settings(name, manners, &cwd)
    };
    let settings = ToolSettings {
        exec: Exec::Shell,
        roots: vec![cwd.to_owned()],
        servers: ["BashExecutor", "Files"].map(server).to_vec(),
        disabled: disabled.split_whitespace().map(str::to_owned).collect(),
        mcp_start_timeout: PATIENCE,
        ..ToolSettings::default()
    };
    Toolbox::start(&settings, &Confinement::default(), None, &(Arc::new(|_| {}) as OnEvent))
}

async fn offers_once_settled(manners: &str, disabled: &str) -> Offers {
    let folder = tempfile::tempdir().unwrap();
    let toolbox = toolbox(manners, disabled, folder.path());
    timeout(PATIENCE, toolbox.host.settled()).await.unwrap();
    toolbox.offers()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_that_still_starts_is_called_after_is_offered_by_it() {
    let folder = tempfile::tempdir().unwrap();
    let offers = |disabled| toolbox("silent", disabled, folder.path()).offers();
    let (commands, files) = (true, true);
    assert_eq!(offers(""), Offers { commands, files });
    assert_eq!(offers("execute_command Files"), Offers { commands: false, files: false });
    assert_eq!(offers("BashExecutor.execute_command"), Offers { commands: false, files });
    assert_eq!(offers("BashExecutor Files.write_file"), Offers { commands: false, files });
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_lists_is_offered_and_nothing_else() {
    assert_eq!(offers_once_settled("executes", "").await, Offers { commands: true, files: true });
    let none = Offers { commands: false, files: false };
    assert_eq!(offers_once_settled("executes", "execute_command Files").await, none);
    assert_eq!(offers_once_settled("good", "").await, Offers { commands: false, files: true });
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_that_does_not_run_would_have_is_not_offered() {
    let none = Offers { commands: false, files: false };
    assert_eq!(offers_once_settled("dies at its start", "").await, none);

    let folder = tempfile::tempdir().unwrap();
    let toolbox = toolbox("executes once", "", folder.path());
    timeout(PATIENCE, toolbox.host.settled()).await.unwrap();
    assert_eq!(toolbox.offers(), Offers { commands: true, files: true });
    call(&toolbox.host, "die", json!({})).await.unwrap_err();
    until(&toolbox.host, |state| matches!(state, ServerState::Down { .. })).await;
    assert_eq!(toolbox.offers(), Offers { commands: false, files: true }, "it does not come back");
}
