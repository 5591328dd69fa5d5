//! The client library for orchestrators: connect to an agent server, submit tasks to devices, follow
//! each to its outcome.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use constellation::{ClientSettings, Constellation, NewTask, ServerUrl, TaskEvent};
//!
//! let settings = ClientSettings::constellation("ws://127.0.0.1:5000".parse::<ServerUrl>()?);
//! let constellation = Constellation::connect(settings, "my-orchestrator".parse()?).await?;
//! let plan = r#"{"commands":[{"tool_name":"get_system_info","tool_type":"action"}]}"#;
//! let mut task = constellation.submit(NewTask::new("my-device".parse()?, plan))?;
//! loop {
//!     match task.next_event().await {
//!         TaskEvent::Accepted => {}
//!         TaskEvent::Progress { line, .. } => eprintln!("{line}"),
//!         TaskEvent::Ended(outcome) => break println!("{:?}", outcome.result),
//!     }
//! }
//! # Ok(())
//! # }
//! ```

mod client;
mod task;

pub use aip::message::{Step, StepStatus};
pub use aip::{ClientId, Payload, SessionId};
pub use client::{Constellation, RequestError};
pub use link::{ClientSettings, Direction, Exit, ServerUrl, Tap};
pub use task::{NewTask, Outcome, Task, TaskEvent};
