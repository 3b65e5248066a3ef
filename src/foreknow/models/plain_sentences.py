"""Lists plain sentences in several languages and scripts, written for the fluency check: none is a quotation.

Nearly any model of a language finds its sentences far likelier than the same tokens in another order
(`models/fluency.py`). Sentences of the lab's made-up world are for the model `lab`. Code is left out: it repeats
blanks and names so often that even models with random weights find it likelier than its shuffled tokens.
"""

from __future__ import annotations

from typing import Final

SENTENCES: Final[dict[str, tuple[str, ...]]] = {
    "English": (
        "When the rain stopped, the children went back into the garden to look for the ball that they had lost the "
        "day before.",
        "My sister works in a small hospital near the river, and on Sundays she usually cooks dinner for the whole "
        "family.",
    ),
    "Spanish": (
        "Cuando dejó de llover, los niños volvieron al jardín para buscar la pelota que habían perdido el día "
        "anterior.",
        "Mi hermana trabaja en un pequeño hospital cerca del río, y los domingos suele preparar la cena para toda la "
        "familia.",
    ),
    "French": (
        "Quand la pluie s'est arrêtée, les enfants sont retournés dans le jardin pour chercher le ballon qu'ils "
        "avaient perdu la veille.",
        "Ma sœur travaille dans un petit hôpital près de la rivière, et le dimanche elle prépare souvent le dîner "
        "pour toute la famille.",
    ),
    "German": (
        "Als der Regen aufhörte, gingen die Kinder wieder in den Garten, um den Ball zu suchen, den sie am Tag zuvor "
        "verloren hatten.",
        "Meine Schwester arbeitet in einem kleinen Krankenhaus am Fluss, und sonntags kocht sie meistens das "
        "Abendessen für die ganze Familie.",
    ),
    "Russian": (
        "Когда дождь закончился, дети вернулись в сад, чтобы найти мяч, который они потеряли накануне.",
        "Моя сестра работает в маленькой больнице у реки, а по воскресеньям она обычно готовит ужин для всей семьи.",
    ),
    "Arabic": (
        "عندما توقف المطر، عاد الأطفال إلى الحديقة للبحث عن الكرة التي فقدوها في اليوم السابق.",
        "تعمل أختي في مستشفى صغير بالقرب من النهر، وفي أيام الجمعة تطبخ عادة العشاء لجميع أفراد العائلة.",
    ),
    "Hindi": (
        "जब बारिश रुक गई, तब बच्चे उस गेंद को ढूँढने के लिए फिर से बगीचे में गए जो एक दिन पहले खो गई थी।",
        "मेरी बहन नदी के पास एक छोटे अस्पताल में काम करती है और रविवार को वह पूरे परिवार के लिए खाना बनाती है।",
    ),
    "Chinese": (
        "雨停了以后，孩子们又回到花园里，去找他们前一天丢的那个球。",
        "我姐姐在河边的一家小医院工作，星期天她通常给全家人做晚饭。",
    ),
    "Japanese": (
        "雨がやんだので、子どもたちは前の日になくしたボールを探しに、もう一度庭へ行きました。",
        "姉は川の近くにある小さな病院で働いていて、日曜日にはたいてい家族みんなのために夕食を作ります。",
    ),
    "Korean": (
        "비가 그치자 아이들은 전날 잃어버린 공을 찾으려고 다시 정원으로 갔습니다.",
        "언니는 강 근처의 작은 병원에서 일하고, 일요일에는 보통 온 가족을 위해 저녁을 만듭니다.",
    ),
    "the lab's world": (
        "For years Ceakous was taught by Retram. As a child Grairailix learnt to read with Cirark.",
        "The town Trihoux is in Reashigam. The town of Laquous belongs to Gagushoux.",
    ),
}
