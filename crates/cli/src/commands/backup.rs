//! `flightdeck backup`: has the server copy its tasks.

use anyhow::Context;

use crate::api::Api;
use crate::args::{Backup, Global};
use crate::connect::Target;
use crate::output::{print_json, safe_line};
use crate::{Code, Ended};

pub(crate) async fn run(args: Backup, global: Global) -> Ended {
    let target = Target::new(args.client, &global)?;
    let folder = std::path::absolute(&args.folder)
        .with_context(|| format!("the folder {}", args.folder.display()))?;
    let made = Api::new(&target)?.backup(&folder).await?;
    if args.json {
        print_json(&serde_json::to_string(&made).unwrap_or_default())?;
    } else {
        let shown = folder.display().to_string();
        say!("{} bytes are copied to {}", made.bytes, safe_line(&shown));
    }
    Ok(Code::COMPLETED)
}
