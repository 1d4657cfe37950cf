"""What a page is to somebody who sees little, sees no color, or uses no mouse. Read in the browser.

Contrast follows WCAG 2.2: 4.5 to 1 for text, 3 to 1 for large text and icons, nothing for what is
disabled or hidden. Colors are the computed ones, laid over each other as the browser does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from playwright.sync_api import Page

_CONTRAST = """() => {
    const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
    canvas.canvas.width = canvas.canvas.height = 1;
    const rgba = color => {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = color;
        canvas.fillRect(0, 0, 1, 1);
        const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
        return [r, g, b, a / 255];
    };
    const over = (top, below) =>
        [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
    const light = color => {
        const part = color.slice(0, 3).map(one => one / 255).map(
            one => one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4);
        return 0.2126 * part[0] + 0.7152 * part[1] + 0.0722 * part[2];
    };
    const ratio = (one, other) => {
        const [low, high] = [light(one), light(other)].sort((a, b) => a - b);
        return (high + 0.05) / (low + 0.05);
    };
    const lineage = element => {
        const found = [];
        for (let one = element; one; one = one.parentElement) found.push(one);
        return found;
    };
    const faint = element =>
        lineage(element).reduce((a, one) => a * getComputedStyle(one).opacity, 1);
    const behind = element => {
        let color = rgba(getComputedStyle(document.documentElement).colorScheme === 'dark'
            ? '#000' : '#fff');
        for (const one of lineage(element).reverse()) {
            const style = getComputedStyle(one);
            const layer = rgba(style.backgroundColor);
            color = over([...layer.slice(0, 3), layer[3] * faint(one)], color);
        }
        return color;
    };
    const bad = [];
    const judge = (element, said, color, below) => {
        const style = getComputedStyle(element);
        const size = parseFloat(style.fontSize);
        const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
        const icon = element.matches('[data-testid=stIconMaterial]');
        const wanted = large || icon ? 3 : 4.5;
        const found = ratio(over(color, below), below);
        if (found < wanted) bad.push({
            text: said.slice(0, 50), ratio: Math.round(found * 100) / 100, wanted,
            color: over(color, below).map(Math.round).slice(0, 3).join(' '),
            behind: below.map(Math.round).slice(0, 3).join(' '),
            where: lineage(element).map(one => one.dataset?.testid).filter(Boolean)
                .slice(0, 3).join(' < '),
        });
    };
    const seen = element =>
        element.checkVisibility({opacityProperty: true, visibilityProperty: true})
        && element.getBoundingClientRect().width > 1
        && !element.closest('[disabled], [aria-disabled=true], canvas, [inert]');
    const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    const dialog = document.querySelector('[role=dialog]');
    while (walk.nextNode()) {
        const element = walk.currentNode.parentElement;
        const said = walk.currentNode.data.trim();
        if (!said || !seen(element) || ['STYLE', 'SCRIPT'].includes(element.tagName)) continue;
        if (dialog && !dialog.contains(element)) continue;
        const style = getComputedStyle(element);
        const drawn = element.closest('svg') ? style.fill : style.color;
        const color = rgba(drawn);
        judge(element, said, [...color.slice(0, 3), color[3] * faint(element)], behind(element));
    }
    for (const field of document.querySelectorAll('input, textarea')) {
        if (!seen(field) || (dialog && !dialog.contains(field))) continue;
        const empty = !field.value && field.placeholder;
        const style = getComputedStyle(field, empty ? '::placeholder' : null);
        const color = rgba(style.color);
        const alpha = color[3] * faint(field) * (empty ? style.opacity : 1);
        const said = empty ? field.placeholder : field.value;
        if (said) judge(field, said, [...color.slice(0, 3), alpha], behind(field));
    }
    // Tables are drawn on a canvas, in these colors.
    for (const grid of document.querySelectorAll('.stDataFrameGlideDataEditor')) {
        const style = getComputedStyle(grid);
        const named = name => rgba(style.getPropertyValue(`--gdg-${name}`));
        for (const [text, below] of [['text-dark', 'bg-cell'], ['text-header', 'bg-header']]) {
            const page = behind(grid);
            judge(grid, `table: ${text}`, named(text), over(named(below), page));
        }
    }
    return bad;
}"""

_CONTROLS = """() => {
    const dialog = document.querySelector('[role=dialog]');
    const tabbable = [...document.querySelectorAll(
        'a[href], button, input, select, textarea, summary, [tabindex]')].filter(
        one => one.tabIndex >= 0 && !one.disabled
            && one.checkVisibility({visibilityProperty: true}) && !one.closest('[inert]')
            && (!dialog || dialog.contains(one)));
    // Tab comes to a group of options once; the arrows choose in it. A table hands the focus on to
    // one of its cells, sooner or later.
    const group = one => one.role === 'radio' ? one.closest('[role=radiogroup]')
        : one.closest('canvas') ?? one;
    window.controls = [...new Set(tabbable.map(group))];
    const look = one => {
        const style = getComputedStyle(one);
        return [style.outlineStyle, style.outlineWidth, style.outlineColor, style.boxShadow,
            style.borderColor, style.backgroundColor, style.textDecorationLine, style.color].join();
    };
    // What shows the focus is the control or what is drawn closely around it.
    window.lookOf = one => [one, one.parentElement, one.parentElement?.parentElement,
        one.nextElementSibling, one.closest('label')].filter(Boolean).map(look).join('|');
    document.activeElement.blur();
    const still = () => document.getAnimations().forEach(
        one => one.effect.getComputedTiming().endTime === Infinity || one.finish());
    still();
    window.before = new Map(window.controls.map(one => [one, window.lookOf(one)]));
    window.focused = () => {
        still();
        const one = document.activeElement;
        // A table draws the ring around its cell itself, and one that scrolls shows its bar.
        const own = group(one).tagName === 'CANVAS' || !window.before.has(group(one));
        return {
            place: window.controls.indexOf(group(one)),
            name: [one.tagName, one.ariaLabel || one.innerText?.slice(0, 40) || one.id,
                one.closest('[data-testid]')?.dataset.testid].join(' '),
            seen: own || window.before.get(group(one)) !== window.lookOf(one),
            within: !dialog || dialog.contains(one),
        };
    };
    window.controls[0].focus({focusVisible: true});
    return window.controls.map(one => one.outerHTML.slice(0, 160));
}"""
_MOST = 400
"""Times that Tab is pressed at most. A table takes one for each column."""


def faint(page: Page) -> list[dict[str, Any]]:
    """Every text with too little contrast: what it says, its ratio and colors, where it stands."""
    found: list[dict[str, Any]] = page.evaluate(_CONTRAST)
    return found


@dataclass(frozen=True)
class Stop:
    """A control that Tab came to: its place in the page's order, and whether that can be seen."""

    place: int
    name: str
    seen: bool
    within: bool


def walk(page: Page) -> tuple[list[str], list[Stop]]:
    """Every control of the page or of its open dialog in their order, and where Tab comes.

    It is pressed until it has come round to the first again, or out of the page.
    """
    wanted: list[str] = page.evaluate(_CONTROLS)
    stops = [_focused(page)]
    for _ in range(_MOST):
        page.keyboard.press("Tab")
        stop = _focused(page)
        if stop.place == 0 or stop.name.startswith("BODY"):
            break
        stops.append(stop)
    return wanted, stops


def _focused(page: Page) -> Stop:
    return Stop(**page.evaluate("window.focused()"))
