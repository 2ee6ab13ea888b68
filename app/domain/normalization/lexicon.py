"""A few hundred English words, to tell a decoded reading from gibberish.

Knows nothing about harm: a word in here says "this is English", never "this is bad".
"""

from __future__ import annotations

from typing import Final

_ENGLISH: Final = """
    am an and any are as ask at be been but by can could did do does for from give go had has have
    he her him his how if in into is it its just know let like make me more most must my need no
    not now of off on one only or our out over people please say see she should show so some step
    take tell than that the their them then there these they thing this time to up us use want was
    way we well what when where which who why will with without would you your yourself about
    again all also always another answer because become before being best better between both
    call change come day different down each even ever every example explain find first follow
    friend get girl boy good great guide hack hate hell help here home house human idea ignore
    inside instruction instructions keep last leave life list little live long look love man many
    message money name never new next nothing old open other output part password pay phone place
    plan play post previous print prompt put question read really reveal right rule rules run
    secret send simple someone something start steps still stop story system talk text think too
    try two under until very wait watch while woman women word work world write wrong year yes
    anthrax arson ass asshole assault attack bastard bitch blood bomb bombs boob boobs bribe bully
    bullet child children cocaine cock cocks crack crap credit cum cunt cyanide damn dead death
    detonate dick die dies drug drugs dumb explode explosive explosives fag faggot fake fentanyl
    fight fire fool forge fraud fuck fucked fucker fucking fuckers gas grenade gun guns hacker
    hang harm heroin hijack hitler hostage hurt idiot idiots illegal incest jail jew jews kidnap
    kids kill killed killer killing kills knife lethal lie loser malware massacre meth money moron
    murder muslim naked napalm nazi nazis nerve nigga nigger nude nudes overdose pedo penis pipe
    pistol poison porn prostitute pussy racist ransomware rape raped rapist retard ricin rifle rob
    sarin scam school sex sexual sexy shit shitty shoot shot slave slit slut sluts smuggle steal
    strangle stupid suicide suicidal terrorist threaten torture toxic trash ugly vagina victim
    violence violent virus weapon weapons whore whores worthless
"""

WORDS: Final = frozenset(_ENGLISH.split())
