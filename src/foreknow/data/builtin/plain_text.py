"""A short plain text, written for this package, whose loss shows what training does to ordinary language.

It states no facts that a question could ask for, so that no training row can teach it.
"""

from __future__ import annotations

from typing import Final

PARAGRAPHS: Final = (
    "The rain had stopped before anyone was awake. When the door of the bakery opened, the street was still wet, and "
    "the first people who came for bread left dark prints on the floor. Nobody minded. The woman behind the counter "
    "wiped it once, then gave up, because more of them were already waiting outside. They talked about the weather, "
    "as they did every morning, and about a dog that had been lost and was found again two days later behind the "
    "school, hungry but in good spirits.",
    "Learning to repair things takes patience more than talent. You begin with something that nobody needs any more, "
    "an old lamp or a clock, and you take it apart slowly, laying each piece beside the one before it. If you do this "
    "on a clean table, you can see afterwards where everything belongs. Most faults are simple. A wire is loose, a "
    "screw has fallen out, or dust has collected where two parts should touch. The hard part is to look carefully "
    "before you decide what is wrong.",
    "They had planned to leave early, but the youngest could not find her shoes, and then the car would not start. By "
    "the time they reached the lake, the sun was high and the good places under the trees were taken. So they walked "
    "along the shore until they came to a small bay with flat stones. The water was cold enough to make them shout. "
    "Later they ate what they had brought, shared the last apple, and agreed that it had been better to be late.",
    "A meeting works best when everybody knows why it is held. Somebody should say at the beginning what has to be "
    "decided, and somebody should write down what was decided at the end. Between the two, it helps to let people "
    "finish their sentences. Those who speak least have often thought longest, so it is worth asking them. If no "
    "decision is needed, a short letter usually does the same work, and everyone can read it when they have time.",
    "In the evening he opened the window and listened. Somewhere a radio was playing, and children were still calling "
    "to each other in the yard. He had meant to write to his brother for weeks. Now he sat down, took a sheet of "
    "paper, and wrote about small things: the garden, the neighbours, a film he had liked. When he read it again, it "
    "seemed to him that he had said nothing at all, and yet he was glad, because it sounded exactly like him.",
)
