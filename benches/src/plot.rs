//! The plot of latency over load.

use std::path::Path;

use plotters::prelude::*;

use crate::report::Curve;

const COLORS: [RGBColor; 5] = [
    RGBColor(90, 90, 90),
    RGBColor(31, 119, 180),
    RGBColor(44, 160, 44),
    RGBColor(214, 39, 40),
    RGBColor(148, 103, 189),
];

/// Draws the curves into an SVG file. Both axes are logarithmic.
///
/// # Errors
///
/// When there are no curves, or the file cannot be written.
pub fn draw(curves: &[Curve], path: &Path) -> anyhow::Result<()> {
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let rates = points().map(|point| point.1);
    let latencies = points().map(|point| point.2);
    anyhow::ensure!(points().next().is_some(), "there are no curves to draw");
    let (slowest, fastest) = bounds(rates);
    let (shortest, longest) = bounds(latencies);

    let area = SVGBackend::new(path, (900, 560)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption("First executions over loopback, 1 to 256 connections", ("sans-serif", 20))
        .margin(16)
        .x_label_area_size(48)
        .y_label_area_size(72)
        .build_cartesian_2d((slowest / 1.3..fastest * 1.3).log_scale(), (shortest / 1.3..longest * 1.3).log_scale())?;
    chart
        .configure_mesh()
        .x_desc("requests per second")
        .y_desc("99th percentile of the latency, in milliseconds")
        .x_label_formatter(&|rate| format!("{rate:.0}"))
        .y_label_formatter(&|latency| format!("{latency}"))
        .label_style(("sans-serif", 14))
        .light_line_style(WHITE)
        .draw()?;
    for (curve, color) in curves.iter().zip(COLORS.iter().cycle()) {
        let line = || curve.points.iter().map(|&(_, rate, latency)| (rate, latency));
        chart
            .draw_series(LineSeries::new(line(), color.stroke_width(2)))?
            .label(curve.name.as_str())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(3)));
        chart.draw_series(line().map(|point| Circle::new(point, 4, color.filled())))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .label_font(("sans-serif", 15))
        .background_style(WHITE)
        .border_style(RGBColor(200, 200, 200))
        .draw()?;
    area.present()?;
    Ok(())
}

fn bounds(figures: impl Iterator<Item = f64>) -> (f64, f64) {
    figures.fold((f64::INFINITY, 0.0), |(least, most), figure| (least.min(figure), most.max(figure)))
}
