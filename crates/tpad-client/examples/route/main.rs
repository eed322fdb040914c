//! Routes a token through a daemon's model and fetches the experts that it
//! chose.
//!
//! `cargo run -p tpad-client --example route -- http://127.0.0.1:7070 MODEL`

mod token;

use std::error::Error;
use std::io::Write as _;

use tpad_client::Client;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, model] = &*arguments else {
        return Err("give the daemon's address and a model's name".into());
    };
    let client = Client::connect(address).await?;
    let layer = client.describe_model(model).await?.layers.first().copied();
    let layer = layer.ok_or("the model has no MoE layer")?;
    // A worker has the layer's input here. Any numbers do to show the way.
    let hidden = |width: usize| (0..width).map(|n| (n as f32).sin()).collect();
    let mut out = std::io::stdout().lock();
    for (key, weight, bytes) in token::route(&client, model, layer, hidden).await? {
        writeln!(out, "layer {layer}: expert {key} has weight {weight} and {bytes} bytes")?;
    }
    Ok(())
}
