//! The client library for orchestrators: connect to an agent server, submit tasks to devices, follow
//! each to its outcome.
//!
//! A Flightdeck server keeps each outcome until it is acknowledged. So a lost connection or a restarted server costs
//! nothing: the connection is made again, and the tasks go on. With [`Keep::open`] the same is true of our own end.
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
//!         TaskEvent::Progress { line, .. } => eprintln!("{line}"),
//!         TaskEvent::Disconnected { why } => eprintln!("{why}; coming back"),
//!         TaskEvent::Ended(outcome) => break println!("{:?}", outcome.result),
//!         TaskEvent::Output(_) | TaskEvent::Accepted { .. } | TaskEvent::Reconnected => {}
//!     }
//! }
//! # Ok(())
//! # }
//! ```

mod client;
mod keep;
mod ledger;
mod orchestrator;
mod streams;
mod task;

pub use aip::message::{Channel, OnDisconnect, Refused, Step, StepStatus, Streams};
pub use aip::{ClientId, Payload, RequestId, SessionId};
pub use client::{Constellation, RequestError};
pub use keep::{Keep, KeepError};
pub use link::{ClientSettings, Direction, Exit, ServerUrl, Tap};
pub use streams::Output;
pub use task::{NewTask, Outcome, Task, TaskEvent, TaskInput};
